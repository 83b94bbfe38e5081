"""Experiments on the user's data and on the paper's, up to what is trained."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import cifar100, clients, commonsense, flan, images, run, tasks, text
from experiments.language import Language
from tests import small

NOTHING = lambda told: None
RNG = np.random.default_rng(0)
# Short pre-training of small models.
SHORT = {"base_steps": 2, "seeds": (0,), "samples": 4, "clients": 4, "rank": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    small.sets(folder, 30)
    small.models(folder)
    return folder


def check(problem, settings):
    """Losses of every client's first adapter; all parts are disjoint."""
    base, cell = problem.base, (settings.heterogeneity[0], settings.seeds[0])
    federation = problem.federations[cell]
    assert len(federation.train.count) == settings.clients
    parts = (federation.train, federation.heldout)
    held = [
        set(np.asarray(p.index[c, : p.count[c]]).tolist())
        for p in parts
        for c in range(settings.clients)
    ]
    trained, heldout = held[: settings.clients], held[settings.clients :]
    test = np.asarray(federation.test.index)[np.asarray(federation.test.weight) > 0]
    assert sum(map(len, trained)) == len(set().union(*trained))
    assert not set().union(*trained) & (set().union(*heldout) | set(test.tolist()))
    np.testing.assert_allclose(federation.test.weight.sum(1), 1, rtol=1e-5)
    adapter = problem.adapter(jax.random.key(0))
    batch = jax.tree.map(lambda x: x[:2], federation.pool)
    loss = jax.jit(problem.task.loss)(base, adapter, batch)
    assert loss.shape == (2,) and np.isfinite(loss).all()
    assert jax.jit(problem.task.correct)(base, adapter, batch).shape == (2,)


def pixels(number, classes=6, side=8):
    labels = np.arange(number) % classes
    return RNG.integers(0, 256, (number, side, side, 3), np.uint8), labels


@pytest.fixture
def npz(tmp_path):
    own, labels = pixels(300)
    np.savez(tmp_path / "a.npz", images=own, labels=labels)
    return tmp_path / "a.npz"


def test_ones_own_images(npz, tmp_path, files):
    how = SHORT | {"data": (npz,), "cache": tmp_path, "width": 32, "depth": 1}
    settings = images.OwnImages(**how, base_batch=4, upstream=0.5)
    settings.check()
    problem = images.problem(settings, NOTHING)
    check(problem, settings)
    assert problem.base["head"]["kernel"].shape == (32, 3)
    again = dataclasses.replace(settings, checkpoint=str(files / "vit"))
    problem = images.problem(again, NOTHING)
    check(problem, again)
    assert problem.base["head"]["kernel"].shape == (32, 6)


def test_cifar100_with_a_pretrained_vit(files):
    how = {"data": (files / "sets",), "checkpoint": str(files / "vit"), "rank": 2}
    settings = cifar100.Cifar100(**how, seeds=(0,), clients=4, heterogeneity=("0.5",))
    settings.check()
    problem = cifar100.problem(settings, NOTHING)
    check(problem, settings)
    own = problem.federations["0.5", 0]
    assert own.pool.inputs.shape == (600, 32, 32, 3)
    test = np.asarray(own.test.index)[np.asarray(own.test.weight) > 0]
    assert test.min() >= 300  # the official test images, and none but those


@pytest.mark.parametrize(
    ("module", "kind"), [(commonsense, commonsense.Commonsense), (flan, flan.Flan)]
)
def test_suites_with_a_pretrained_llama(module, kind, files):
    told = []
    how = {"data_dir": files / "sets", "checkpoint": str(files / "llama"), "rank": 2}
    settings = kind(**how, context=80)
    settings.check()
    problem = module.problem(settings, told.append)
    check(problem, settings)
    own = problem.federations["tasks", 0]
    assert own.proportions.shape == (8, 8)
    np.testing.assert_array_equal(own.proportions.argmax(1), range(8))
    assert all("have more than 80 tokens" in line for line in told)


def test_generated_tasks(tmp_path):
    settings = tasks.Tasks(**SHORT, cache=tmp_path, examples=40)
    settings.check()
    check(tasks.problem(settings, NOTHING), settings)


@pytest.fixture
def lines(tmp_path):
    paths = []
    for task in range(3):
        path = tmp_path / f"{task}.jsonl"
        rows = [{"text": f"{task} is {i}", "label": i % (task + 2)} for i in range(90)]
        path.write_text("\n".join(map(json.dumps, rows)))
        paths.append(path)
    return tuple(paths)


def test_ones_own_texts(lines, tmp_path, files):
    how = SHORT | {"data": lines, "cache": tmp_path, "vocabulary": 300}
    settings = text.OwnText(**how, width=32, depth=1)
    settings.check()
    check(text.problem(settings, NOTHING), settings)
    again = dataclasses.replace(settings, checkpoint=str(files / "llama"))
    check(text.problem(again, NOTHING), again)


def test_ones_own_clients_of_texts(lines, tmp_path):
    how = SHORT | {"data": (lines[0].parent,), "clients": 0, "cache": tmp_path / "x"}
    settings = clients.OwnClients(**how, vocabulary=300, width=32, depth=1)
    settings = clients.resolve(settings)
    settings.check()
    assert settings.clients == 2
    check(clients.problem(settings, NOTHING), settings)


def test_ones_own_clients_of_images(tmp_path):
    folder = tmp_path / "own"
    for client in range(3):
        own, labels = pixels(40, classes=2 + client)
        if client:
            folder.mkdir(exist_ok=True)
            np.savez(folder / f"{client}.npz", images=own, labels=labels)
            continue
        for number, (image, label) in enumerate(zip(own, labels, strict=True)):
            path = folder / "0" / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    how = SHORT | {"data": (folder,), "clients": 0, "cache": tmp_path / "x"}
    settings = clients.OwnClients(**how, width=32, depth=1, base_batch=4)
    settings = clients.resolve(settings)
    settings.check()
    assert settings.clients == 2 and settings.targets == ("query", "value")
    check(clients.problem(settings, NOTHING), settings)


REFUSED = [
    (["images"], "--data names nothing"),
    (["text"], "--data names nothing"),
    (["clients", "--data", "nowhere"], "--data must name one folder"),
    (["text", "--data", "nowhere.jsonl"], "nowhere.jsonl is not a file"),
    (["images", "--data", "nowhere.npz"], "neither an .npz file nor a folder"),
    (["images", "--data", "x.npz", "--width", "33"], "--width is 33"),
    (["tasks", "--curvature", "exact"], "need sampled"),
    (["tasks", "--seen", "17"], "--seen is 17: it must be from 1 to 16"),
    (["tasks", "--clients", "600"], "take fewer clients"),
    (["commonsense", "--checkpoint", "no where"], "neither a folder nor a name"),
    (["digits", "--heterogeneity", "shards"], "--heterogeneity is shards"),
]


@pytest.mark.parametrize(("words", "reason"), REFUSED)
def test_a_mistake_is_one_line_and_status_2(words, reason, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path)]
    assert run.main(["run", *words, *out]) == 2
    told = capsys.readouterr().err
    assert reason in told and told.startswith("potara: ") and told.count("\n") == 1


def test_what_cannot_be_done_with_an_experiment_is_said(capsys):
    assert run.main(["study", "tasks"]) == 2
    assert "there is no study of tasks; there is of digits" in capsys.readouterr().err


def test_every_experiment_of_texts_measures_drawn_labels():
    kinds = [e.settings["run"] for e in run.EXPERIMENTS.values()]
    of_texts = [kind for kind in kinds if issubclass(kind, Language)]
    assert len(of_texts) == 5
    assert {kind().curvature for kind in of_texts} == {"sampled"}
