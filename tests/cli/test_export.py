import dataclasses
import json

import jax
import numpy as np
import pytest
from potara_jax.experiments.digits import Digits
from potara_jax.experiments.images import OwnImages
from potara_jax.experiments.tasks import Tasks

from potara_jax.adapters import peft
from potara_jax.cli import export
from potara_jax.cli import main as cli
from potara_jax.experiment.settings import resolved
from potara_jax.jobs import run
from potara_jax.models import llama, weights
from potara_jax.runs.store import Cell, Store

CELL = Cell("tasks", 1)


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A run folder of two tasks' clients, with adapters that nobody trained."""
    settings = Tasks(seeds=(1,), clients=2, examples=40, base_steps=1, rank=2)
    settings = dataclasses.replace(settings, samples=4, cache=tmp_path / "cache")
    config = {"experiment": "tasks", "job": "run", **resolved(settings)}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    problem = run.EXPERIMENTS["tasks"].problem(settings, print)
    keys = jax.random.split(jax.random.key(3))
    noise = lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape)
    adapters = jax.tree.map(noise, jax.vmap(problem.adapter)(keys))
    Store(folder, print).keep_adapters(CELL, "potara core", adapters)
    return folder, problem, adapters


def words(folder, *more):
    return ["export", str(folder), "--cache", str(folder.parent / "cache"), *more]


def test_every_client_has_an_adapter_and_there_is_the_base(finished):
    folder, problem, adapters = finished
    assert cli.main(words(folder)) == 0
    out = folder / "export"
    config = llama.config_of(weights.read_config(out / "base"))
    base = weights.load(out / "base", llama.TABLE, problem.base)
    jax.tree.map(np.testing.assert_array_equal, base, problem.base)
    assert config.vocabulary == 259
    last = config.depth - 1
    for client in range(2):
        read = peft.read(out / CELL.name / f"client-{client:03d}")
        found = read.adapter[f"model.layers.{last}.self_attn.q_proj"]
        own = adapters["layers/self_attn/q_proj"]
        product = lambda a, b: np.float64(a) @ np.float64(b)
        expected = 8 * product(own["a"][client, last], own["b"][client, last])
        np.testing.assert_allclose(product(**found), expected, rtol=1e-6)
    assert cli.main(words(folder)) == 2
    assert cli.main(words(folder, "--overwrite")) == 0


def test_one_client_folded_says_what_its_adapter_says(finished):
    folder, problem, adapters = finished
    assert cli.main(words(folder, "--folded", "--clients", "1")) == 0
    (made,) = (folder / "export" / CELL.name).iterdir()
    again = weights.load(made, llama.TABLE, problem.base)
    batch = jax.tree.map(lambda x: x[:2], problem.federations[CELL].pool)
    own = jax.tree.map(lambda x: x[1], adapters)
    expected = problem.task.logits(problem.base, own, batch)
    none = jax.tree.map(np.zeros_like, own)
    found = problem.task.logits(again, none, batch)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert (made / "tokenizer.json").is_file()


def test_nothing_but_its_like_is_replaced(finished, capsys):
    folder, out = finished[0], finished[0] / "export"
    assert cli.main(words(folder, "--clients", "0")) == 0
    assert cli.main(words(folder, "--clients", "1")) == 0  # for the same base
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert cli.main(words(folder, "--overwrite", "--dtype", "float16")) == 2
    assert "base is there already and is no copy" in capsys.readouterr().err
    assert cli.main(words(folder, "--overwrite", "--folded")) == 2
    assert "holds no whole model" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    new = words(folder, "--folded", "--clients", "0", "--out", str(folder / "new"))
    assert cli.main(new) == 0 and cli.main(new) == 2
    assert cli.main([*new, "--overwrite"]) == 0
    assert "is there already" in capsys.readouterr().err
    (folder / "new" / CELL.name / "client-000" / "mine").write_text("")
    assert cli.main([*new, "--overwrite"]) == 2
    assert "holds more than a whole model (mine)" in capsys.readouterr().err


def test_a_checkpoint_in_a_folder_is_named_from_the_root(
    finished, tmp_path, monkeypatch
):
    problem, options = finished[1], export.Export(finished[0])
    named = lambda name: problem._replace(form=problem.form._replace(checkpoint=name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    found = export._base(named("own"), tmp_path, options)
    assert found == str((tmp_path / "own").resolve())
    assert export._base(named("owner/model"), tmp_path, options) == "owner/model"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seeds": 5}, "is not of a run"),
        ({"experiment": ["tasks"]}, "is not of a run"),
        ({"merges": 3}, r"config.json cannot be understood"),
        ({"job": "study"}, "holds a study: only runs keep models"),
    ],
)
def test_damaged_settings_of_a_run_are_named(finished, change, told, capsys):
    path = finished[0] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert cli.main(words(finished[0])) == 2
    assert told in capsys.readouterr().err


def test_data_that_are_not_there_are_named(finished, capsys):
    path = finished[0] / "config.json"
    settings = {"experiment": "cifar100", "data": ["nowhere"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    assert cli.main(words(finished[0])) == 2
    assert "nowhere, which" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--clients", "2"), "--clients names 2: it must be below 2"),
        (("--cells", "a"), "--cells names a; there are tasks-seed-1"),
        (("--method", "ties"), "--method is ties"),
        (("--method", "local"), "the run is not finished"),
    ],
)
def test_what_is_not_there_is_named(finished, more, told, capsys):
    assert cli.main(words(finished[0], *more)) == 2
    assert told in capsys.readouterr().err


def test_no_run_folder_is_named(tmp_path, capsys):
    assert cli.main(words(tmp_path / "nothing")) == 2
    assert "is no run folder" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [Digits, Tasks, OwnImages])
def test_settings_are_those_of_the_run(kind):
    settings = kind(seeds=(4, 5), rank=3, privacy_clip=0.5)
    config = json.loads(json.dumps(resolved(settings)))
    assert export.restored(kind, config) == settings
