"""Experiments on the user's data and on the paper's, up to what is trained."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from potara_jax.experiments import (
    cifar100,
    clients,
    commonsense,
    flan,
    images,
    tasks,
    text,
)

from potara_jax.cli import export
from potara_jax.data import text as texts
from potara_jax.data import tokens
from potara_jax.data.text import Example
from potara_jax.experiment.language import Language, loaded
from potara_jax.jobs import run
from potara_jax.runs import files as files_
from potara_jax.runs.store import open_store
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
    assert jax.jit(problem.task.judge)(base, adapter, batch)[1].shape == (2,)


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


def test_one_text_in_twenty_may_be_cut(files):
    tokenizer = loaded(str(files / "llama")).tokenizer
    short, long = Example("ab " * 8, ("c", "d")), Example("ab " * 500, ("c", "d"))
    needed = [need for need, _ in tokens.lengths([short, long], tokenizer)]
    context = lambda *examples, **how: text._context(
        text.OwnText(**how), tokenizer, list(examples)
    )
    assert context(*[short] * 19, long) == -(-needed[0] // 8) * 8
    assert context(*[short] * 18, long, long) == 128 < needed[1]
    assert context(*[short] * 18, long, long, context=40) == 40
    spoken = Example("ab", ("word " * 9,))
    ((_, answer),) = tokens.lengths([spoken], tokenizer)
    assert answer < context(*[short] * 39, spoken) < 128


def test_ones_own_texts(lines, tmp_path, files):
    how = SHORT | {"data": lines, "cache": tmp_path, "vocabulary": 300}
    settings = text.OwnText(**how, width=32, depth=1)
    settings.check()
    check(text.problem(settings, NOTHING), settings)
    again = dataclasses.replace(settings, checkpoint=str(files / "llama"))
    check(text.problem(again, NOTHING), again)
    told = []
    text.problem(dataclasses.replace(again, clients=2), told.append)
    assert told[0] == "no client has 2.jsonl, with one task each; set --clients"


def test_ones_own_clients_of_texts(lines, tmp_path):
    how = SHORT | {"data": (lines[0].parent,), "clients": 0, "cache": tmp_path / "x"}
    settings = clients.OwnClients(**how, vocabulary=300, width=32, depth=1)
    settings = clients.resolve(settings)
    settings.check()
    assert settings.clients == 2 and settings.curvature == "sampled"
    asked = dataclasses.replace(settings, train_head=True)
    with pytest.raises(ValueError, match="--train-head is set: a Llama has no head"):
        clients.problem(asked, NOTHING)
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
    assert settings.train_head and settings.curvature == "empirical"
    check(clients.problem(settings, NOTHING), settings)
    asked = {"train_head": False, "curvature": "exact", "targets": ("key",)}
    settings = clients.resolve(clients.OwnClients(**how, **asked))
    assert asked == {name: getattr(settings, name) for name in asked}


REFUSED = [
    (["images"], "--data names nothing"),
    (["text"], "--data names nothing"),
    (["clients", "--data", "nowhere"], "--data names nowhere: it must name one folder"),
    (["text", "--data", "x", "--seen", "0"], "--seen is 0: it must be from 1 to 1"),
    (["text", "--data", "x", "--depth", "0"], "--depth is 0"),
    (["text", "--data", "x", "--base-steps", "-5"], "--base-steps is -5"),
    (["text", "--data", "x", "--train-examples", "8"], "--train-examples is 8"),
    (["images", "--data", "x", "--clients", "3", "--newcomers", "0.99"], "newcomers"),
    (["images", "--data", "x", "--base-seed", str(2**64)], "--base-seed is"),
    (["digits", "--seeds", str(2**64)], "--seeds is"),
    (["digits", "--learning-rate", "inf"], "--learning-rate is inf"),
    (["digits", "--heterogeneity", "shards²"], "--heterogeneity is shards²"),
    (["digits", "--cohort", "²"], "--cohort is ²"),
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


BROKEN = [
    ("llama", {"eos_token_id": None}, "cannot be understood|special token None"),
    ("llama", {"eos_token_id": 9999}, "a special token 9999, but 288 tokens"),
    ("llama", {"vocab_size": ...}, "config.json has no 'vocab_size'"),
    ("llama", {"num_attention_heads": ...}, "has no 'num_attention_heads'"),
    ("vit", {"hidden_size": ...}, "has no 'hidden_size'"),
    ("vit", {"image_size": [8, 8]}, r"images of \[8, 8\]: they must be square"),
]


@pytest.mark.parametrize(("kind", "change", "reason"), BROKEN)
def test_a_checkpoint_that_lacks_something_is_named(
    kind, change, reason, files, npz, tmp_path
):
    folder = shutil.copytree(files / kind, tmp_path / kind)
    config = json.loads((folder / "config.json").read_text()) | change
    kept = {name: value for name, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=reason):
        if kind == "llama":
            loaded(str(folder))
        else:
            images.problem(
                images.OwnImages(data=(npz,), checkpoint=str(folder), **SHORT), NOTHING
            )


@pytest.mark.parametrize("told", [{"image_mean": None}, {"image_std": [0, 0, 0]}, []])
def test_a_damaged_preprocessor_is_named(told, files, npz, tmp_path):
    folder = shutil.copytree(files / "vit", tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    settings = images.OwnImages(data=(npz,), checkpoint=str(folder), samples=4)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        images.problem(dataclasses.replace(settings, clients=4), NOTHING)


def test_clients_settings_of_images_are_checked(tmp_path, npz, capsys):
    for name in "ab":
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / f"{name}.npz").write_bytes(npz.read_bytes())
    places = ["--data", str(tmp_path / "own"), "--out", str(tmp_path / "out")]
    for wrong in ("--upstream 5", "--upstream nan", "--upstream 0", "--side 0"):
        wrong = wrong.split()
        assert run.main(["run", "clients", *places, *wrong]) == 2
        told = capsys.readouterr().err
        assert f"{wrong[0]} is {wrong[1]}" in told and told.count("\n") == 1
    (tmp_path / "own" / "notes.json").write_text("{}")
    assert run.main(["run", "clients", *places]) == 2
    assert "texts (notes.json) and images (b.npz)" in capsys.readouterr().err


def test_a_cache_that_cannot_be_is_refused_at_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["digits", "--out", str(tmp_path / "out"), "--cache"]
    assert run.main([*words, str(tmp_path / "file" / "cache")]) == 2
    told = capsys.readouterr().err
    assert "cannot use" in told and "--cache" in told and told.count("\n") == 1


def test_data_that_changed_under_a_run_are_refused(npz, tmp_path):
    settings = images.OwnImages(data=(npz,))
    config = run.configuration("images", settings, "run")
    (tmp_path / "run").mkdir()
    open_store(tmp_path / "run", config, rerun=False, warn=NOTHING)
    files_.write_json(tmp_path / "run" / "cells" / "0.1-seed-0.json", {})
    open_store(tmp_path / "run", config, rerun=False, warn=NOTHING)
    own, labels = pixels(300)
    np.savez(npz, images=own, labels=labels)
    changed = run.configuration("images", settings, "run")
    with pytest.raises(ValueError, match=r"on data, or.* have changed since.*--rerun"):
        open_store(tmp_path / "run", changed, rerun=False, warn=NOTHING)
    with pytest.raises(ValueError, match="have changed since"):
        export._problem(config, export.Export(tmp_path / "run"), NOTHING)


def test_a_checkpoint_that_changed_is_another_one(npz, files, tmp_path):
    folder = shutil.copytree(files / "vit", tmp_path / "vit")
    settings = images.OwnImages(data=(npz,), checkpoint=str(folder))
    before = run.configuration("images", settings, "run")
    assert before == run.configuration("images", settings, "run")
    (folder / "notes.txt").write_text("not read")
    assert before == run.configuration("images", settings, "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=3))
    assert before != run.configuration("images", settings, "run")
    of_a_name = cifar100.Cifar100(checkpoint="owner/model")
    assert files_.DATA not in run.configuration("cifar100", of_a_name, "run")


def test_an_image_that_is_there_twice_is_used_once(npz, tmp_path):
    told, how = [], SHORT | {"cache": tmp_path, "width": 32, "depth": 1}
    settings = images.OwnImages(data=(npz, npz), **how, base_batch=4, upstream=0.5)
    problem = images.problem(settings, told.append)
    assert told[0] == "300 images are there twice: each is kept once"
    check(problem, settings)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("images --side 3000000000", "--side is 3000000000"),
        ("text --vocabulary 99999999999999999999999", "--vocabulary is 9999"),
        (
            "images --heterogeneity shards99999999999999999999",
            "--heterogeneity is shards9",
        ),
        ("images --weight-decay inf", "--weight-decay is inf"),
        (
            "images --out DATA/out",
            "--out is DATA/out: it must not be inside --data DATA",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(
    words, told, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("DATA").mkdir()
    name, *options = words.split()
    out = [] if "--out" in options else ["--out", "out"]
    assert run.main(["run", name, "--data", "DATA", *out, *options]) == 2
    assert told in capsys.readouterr().err and not Path("DATA/out").exists()


def test_names_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.jsonl")
    path.write_text("")
    for named in (path, tmp_path):
        with pytest.raises(ValueError, match=r"udcff\.jsonl' is no UTF-8; rename it"):
            files_.digest([named])


def test_files_behind_links_are_in_the_digest(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").write_text("1")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "there")
    before = files_.digest([tmp_path / "data"])
    (tmp_path / "there" / "a").write_text("2")
    assert files_.digest([tmp_path / "data"]) != before


def test_clients_of_one_label_and_dealt_clients_are_refused(tmp_path):
    rows = [json.dumps({"text": f"is {i}", "label": 0}) for i in range(30)]
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    settings = clients.OwnClients(data=(tmp_path,), cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="all files have the label '0' alone"):
        clients.problem(clients.resolve(settings), NOTHING)
    settings = dataclasses.replace(settings, heterogeneity=("0.1",))
    with pytest.raises(ValueError, match="clients are as they are"):
        clients.resolve(settings).check()


def test_a_text_is_known_by_its_options_where_they_are_its_own(tmp_path):
    ask = lambda i: {"query": "Which is right?", "choices": ["no", f"{i}"], "gold": 1}
    say = lambda i: {"query": f"Is it {i}?", "choices": ["no", "yes"], "gold": i % 2}
    for name, make in {"own": ask, "common": say}.items():
        rows = [json.dumps(make(i)) for i in [*range(30), 3]]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    data = (tmp_path / "own.jsonl", tmp_path / "common.jsonl")
    told, settings = [], text.OwnText(data=data)
    kept = text._once([texts.read(path) for path in data], settings, told.append)
    assert [len(examples) for examples in kept] == [30, 30]
    assert told[0].startswith("2 examples have a text that is there twice")


def test_clients_share_their_labels(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for client in range(3):
        rows = [{"text": f"{client} is {i}", "label": client} for i in range(30)]
        (folder / f"{client}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    how = {"base_steps": 1, "vocabulary": 300, "context": 32, "width": 32, "depth": 1}
    settings = clients.OwnClients(data=(folder,), cache=tmp_path, **how)
    problem = clients.problem(clients.resolve(settings), NOTHING)
    assert len(problem.held.clients) == 2 and problem.held.kind == "client"
    pool = next(iter(problem.federations.values())).pool
    assert (
        pool.inputs.answers.shape[1] == 3
    )  # options, though no client has more than one


def test_what_cannot_be_done_with_an_experiment_is_said(capsys):
    assert run.main(["study", "tasks"]) == 2
    assert "there is no study of tasks; there is of digits" in capsys.readouterr().err


def test_every_experiment_of_texts_measures_drawn_labels():
    kinds = [e.settings["run"] for e in run.EXPERIMENTS.values()]
    of_texts = [kind for kind in kinds if issubclass(kind, Language)]
    assert len(of_texts) == 5
    of_texts.remove(clients.OwnClients)  # whose kind decides
    assert {kind().curvature for kind in of_texts} == {"sampled"}
