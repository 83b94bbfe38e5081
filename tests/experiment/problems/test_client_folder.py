"""The clients of a folder: who pre-trains the base, and who federates."""

import dataclasses
import json
from pathlib import Path

import pytest

from potara_jax.data import leaf
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problems import client_folder
from potara_jax.experiment.problems.client_folder import ClientFolder
from potara_jax.experiment.problems.clients import read_texts
from potara_jax.experiment.settings import Cells, Pretraining


@pytest.mark.parametrize(
    ("share", "clients", "number"),
    [
        *((0.3, 10, 3), (0.3, 20, 6), (0.01, 10, 1), (0.99, 10, 9), (0.5, 2, 1)),
        *((0.0, 10, 0), (1.0, 10, 0), (float("nan"), 10, 0)),
    ],
)
def test_a_share_of_the_clients_pretrains_the_base(share, clients, number):
    source = ClientFolder(upstream=share)
    assert client_folder.num_upstream(source, clients) == number
    loaded = dataclasses.replace(source, checkpoint="x")
    assert client_folder.num_upstream(loaded, clients) == 0


def folder_of(path: Path, number: int) -> Path:
    for client in range(number):
        (path / f"{client}.jsonl").touch()
    (path / ".hidden.jsonl").touch()
    (path / "notes.txt").touch()
    return path


def divided(folder: Path, *, clients: int, seed: int) -> client_folder.Clients:
    experiment = Experiment(
        "",
        lambda *_: None,
        source=ClientFolder((folder,)),
        cells=Cells(clients=clients),
        pretraining=Pretraining(seed=seed),
    )
    return client_folder.divide(experiment)


def test_the_first_clients_that_the_base_has_not_seen_federate(tmp_path):
    folder = folder_of(tmp_path, 10)
    paths = divided(folder, clients=5, seed=0)
    assert (len(paths.upstream), len(paths.federated)) == (3, 5)
    others = sorted(set(client_folder.find([folder])) - set(paths.upstream))
    assert paths.federated == others[:5]
    assert divided(folder, clients=5, seed=0) == paths
    drawn = [divided(folder, clients=5, seed=seed).upstream for seed in range(5)]
    assert any(upstream != paths.upstream for upstream in drawn)


def test_only_settings_of_the_clients_kind_of_data_remain():
    source = ClientFolder(data=(Path("a"),), width=64)
    images = client_folder.narrowed(source, of_texts=False)
    texts = client_folder.narrowed(source, of_texts=True)
    assert not {"context", "vocabulary", "normalise", "fields"} & {*vars(images)}
    assert not {"side", "image_size", "layers"} & {*vars(texts)}
    assert images.width == texts.width == 64
    assert client_folder.narrowed(texts, of_texts=True) == texts
    longer = dataclasses.replace(source, context=64)
    with pytest.raises(ValueError, match=r"source\.context is 64: it must be left out"):
        client_folder.narrowed(longer, of_texts=False)


# --- What is a client ----------------------------------------------------------------


def names_of(folder: Path) -> list[tuple[str, bool]]:
    return [(c.name, c.of_texts) for c in client_folder.find([folder])]


def test_clients_are_files_or_folders_of_texts(tmp_path):
    for number in range(3):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{number}.csv.gz").touch()
        (tmp_path / "folders" / f"{number}").mkdir(parents=True)
        (tmp_path / "folders" / f"{number}" / "data.jsonl").touch()
    (tmp_path / "folders" / "README.txt").touch()
    expected = [(f"{number}.csv.gz", True) for number in range(3)]
    assert names_of(tmp_path / "files") == expected
    assert names_of(tmp_path / "folders") == [(f"{n}", True) for n in range(3)]


def test_clients_are_arrays_or_folders_of_images(tmp_path):
    (tmp_path / "a.npz").touch()
    (tmp_path / "b" / "cat").mkdir(parents=True)
    assert names_of(tmp_path) == [("a.npz", False), ("b", False)]


def test_users_in_a_column_are_clients(tmp_path):
    path = tmp_path / "posts.csv"
    path.write_text("User,text,label\nann,x,1\nbob,y,0\nann,z,0\n")
    assert names_of(path) == [("ann", True), ("bob", True)]
    ann, bob = read_texts(client_folder.find([path]), {}, lambda line: None)
    assert [x.prompt for x in ann] == ["x\nlabel:", "z\nlabel:"]
    assert [(x.options, x.gold) for x in bob] == [(("0", "1"), 0)]
    path.write_text("text,label\nx,1\ny,0\n")
    with pytest.raises(ValueError, match=r"holds 0 clients \(posts\.csv\)"):
        client_folder.find([path])


def leaf_file(path: Path, **users) -> Path:
    data = {name: {"x": x, "y": y} for name, (x, y) in users.items()}
    sizes = [len(x) for x, _ in users.values()]
    content = {"users": [*users], "num_samples": sizes, "user_data": data}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_users_of_leaf_are_clients(tmp_path):
    path = leaf_file(
        tmp_path / "a.json", ann=(["x", "y"], [1, 0]), bob=(["z"], [" "]), eve=([], [])
    )
    assert names_of(path) == [("ann", True), ("bob", True)]
    clients = client_folder.find([path])
    ann, bob = read_texts(clients, {}, lambda line: None)
    assert [x.prompt for x in ann] == ["x\nlabel:", "y\nlabel:"]
    assert bob[0].options == ("0", "1", "space") and bob[0].gold == 2


def test_training_and_test_files_of_leaf_are_joined_by_user(tmp_path):
    leaf_file(
        tmp_path / "train" / "a.json", ann=([[0.0] * 4], [1]), bob=([[1] * 4], [0])
    )
    leaf_file(tmp_path / "test" / "a.json", ann=([[0.5] * 4], [2]))
    assert names_of(tmp_path) == [("ann", False), ("bob", False)]
    ann = leaf.users(tmp_path)["ann"]
    assert ann.labels == [1, 2] and leaf.pixels(ann).tolist() == [[0] * 4, [0.5] * 4]


def test_a_damaged_file_of_leaf_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"users": ["ann"], "user_data": {}}')
    with pytest.raises(ValueError, match=r"a\.json is damaged: it must have users"):
        client_folder.find([path])


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((), r"holds 0 clients \(nothing\)"),
        (("a.md", "b.md"), r"holds 0 clients \(a\.md, b\.md\)"),
        (("a.jsonl",), r"holds 1 clients \(a\.jsonl\)"),
        (("a.jsonl", "b.npz"), r"holds texts \(a\.jsonl\) and images \(b\.npz\)"),
    ],
)
def test_a_folder_without_clients_is_named_with_what_it_holds(tmp_path, names, reason):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=reason):
        client_folder.find([tmp_path])
