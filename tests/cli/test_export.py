"""`potara export`: the clients' models of a finished run, as its user has it."""

import json

import jax
import numpy as np
import pytest

from potara_jax.adapters import peft
from potara_jax.cli import export as cli_export
from potara_jax.cli.main import main
from potara_jax.experiment.problem import Resources
from potara_jax.experiments import tasks
from potara_jax.jobs import Table, configuration
from potara_jax.jobs.export import ExportOptions, _base
from potara_jax.models import llama, weights
from potara_jax.runs.folder import RunFolder
from potara_jax.runs.store import Cell
from tests.jobs.tiny import TASKS

pytestmark = pytest.mark.slow

CELL = Cell("tasks", 1)
SMALL = tasks.EXPERIMENT.set(TASKS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def problem(cache):
    return tasks.make_problem(SMALL, Resources(cache))


@pytest.fixture
def finished(problem, tmp_path):
    """A run folder of two tasks' clients, with adapters that nobody trained."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = configuration(SMALL, Table()) | {"load": []}
    (folder / "config.json").write_text(json.dumps(config))
    keys = jax.random.split(jax.random.key(3))
    noise = lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape)
    adapters = jax.tree.map(noise, jax.vmap(problem.adapter)(keys))
    RunFolder(folder, print).keep_adapters(CELL, "tempered_bayes", adapters)
    return folder, adapters


@pytest.fixture
def export(cache):
    """Run the command on a folder."""
    return lambda folder, *more: main(
        ["export", str(folder), "--cache", str(cache), *map(str, more)]
    )


def test_every_client_has_an_adapter_beside_the_base(finished, problem, export):
    folder, adapters = finished
    assert export(folder) == 0
    out = folder / "export"
    config = llama.config_of(weights.read_config(out / "base"))
    base = weights.load(out / "base", llama.TABLE, problem.base)
    jax.tree.map(np.testing.assert_array_equal, base, problem.base)
    assert config.vocabulary == 259
    last = config.depth - 1
    for client in range(2):
        read = peft.read(out / CELL.name / f"client-{client:03d}")
        written = read.adapter[f"model.layers.{last}.self_attn.q_proj"]
        given = adapters["layers/self_attn/q_proj"]
        product = lambda a, b: np.float64(a) @ np.float64(b)
        expected = 8 * product(given["a"][client, last], given["b"][client, last])
        np.testing.assert_allclose(product(**written), expected, rtol=1e-6)
    assert export(folder) == 2
    assert export(folder, "--overwrite") == 0


def test_a_folded_model_computes_what_its_adapter_computes(finished, problem, export):
    folder, adapters = finished
    assert export(folder, "--folded", "--clients", 1) == 0
    (made,) = (folder / "export" / CELL.name).iterdir()
    again = weights.load(made, llama.TABLE, problem.base)
    batch = jax.tree.map(lambda x: x[:2], problem.federations[CELL].pool)
    adapter = jax.tree.map(lambda x: x[1], adapters)
    expected = problem.task.logits(problem.base, adapter, batch)
    none = jax.tree.map(np.zeros_like, adapter)
    logits = problem.task.logits(again, none, batch)
    np.testing.assert_allclose(logits, expected, atol=2e-3)
    assert (made / "tokenizer.json").is_file()


@pytest.mark.parametrize(("pooling", "said"), [("mean", True), ("pooler", False)])
def test_a_head_that_transformers_does_not_have_is_said(
    finished, problem, export, pooling, said, capsys, monkeypatch
):
    form = problem.form._replace(config=problem.form.config | {"pooling": pooling})
    changed = problem._replace(form=form)
    monkeypatch.setattr(cli_export, "_problem", lambda *_: changed)
    assert export(finished[0], "--clients", 1) == 0
    assert ("--pooling pooler" in capsys.readouterr().err) == said


def test_only_an_exported_model_is_replaced(finished, export, capsys):
    folder, out = finished[0], finished[0] / "export"
    assert export(folder, "--clients", 0) == 0
    assert export(folder, "--clients", 1) == 0  # for the same base
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert export(folder, "--overwrite", "--dtype", "float16") == 2
    assert "is not a copy of this base" in capsys.readouterr().err
    assert export(folder, "--overwrite", "--folded") == 2
    assert "holds no whole model" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    new = folder, "--folded", "--clients", 0, "--out", folder / "new"
    assert export(*new) == 0 and export(*new) == 2
    assert export(*new, "--overwrite") == 0
    assert "already exists" in capsys.readouterr().err
    (folder / "new" / CELL.name / "client-000" / "mine").write_text("")
    assert export(*new, "--overwrite") == 2
    assert "holds more than a whole model (mine)" in capsys.readouterr().err


def test_a_checkpoint_in_a_folder_is_named_from_the_root(
    problem, tmp_path, monkeypatch
):
    of = lambda name: problem.form._replace(checkpoint=name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    named = _base(problem.base, of("model"), tmp_path, ExportOptions())
    assert named == str((tmp_path / "model").resolve())
    assert (
        _base(problem.base, of("owner/model"), tmp_path, ExportOptions())
        == "owner/model"
    )


# --- Mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cells.clients": "two"}, "is not that of a run"),
        ({"experiment": ["tasks"]}, "is not that of a run"),
        ({"cells.seeds": 5}, "config.json: cells.seeds is 5: it must be a tuple"),
        ({"merging.methods": 3}, "config.json: merging.methods is 3: it must be"),
        ({"experiment": "task"}, "there is no experiment task"),
        ({"job": "study"}, "holds a study: only runs keep models"),
        ({"lora.rank": "two"}, "config.json: lora.rank is 'two': it must be a whole"),
        ({"local.rounds": 0}, "config.json: local.rounds is 0"),
    ],
)
def test_damaged_settings_of_a_run_are_named(finished, export, change, reason, capsys):
    path = finished[0] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    status = export(finished[0])
    error = capsys.readouterr().err
    assert status == 2 and reason in error and error.count("\n") == 1


def test_a_run_of_another_version_is_told_from_one_whose_data_changed(
    finished, export, capsys
):
    folder = finished[0]
    path = folder / "config.json"
    config = json.loads(path.read_text())
    lacking = {name: x for name, x in config.items() if name != "lora.whole"}
    for changed, reason in (
        (lacking, "config.json lacks lora.whole: the settings of potara_jax unknown"),
        (config | {"lora.dora": False}, "config.json has lora.dora: the settings of"),
    ):
        path.write_text(json.dumps(changed))
        assert export(folder) == 2
        assert reason in capsys.readouterr().err
    (folder / "versions.json").write_text(json.dumps({"potara_jax": "0.0.9"}))
    assert export(folder) == 2
    assert "potara_jax 0.0.9 (this is " in capsys.readouterr().err


@pytest.mark.parametrize("method", ["tempered_bayes", "hermite_bayes"])
def test_the_default_weight_that_a_run_has_is_exported(finished, export, method):
    folder, _ = finished
    kept = next((folder / "adapters").rglob("*.safetensors"))
    kept.rename(kept.with_stem(method))
    assert export(folder, "--clients", "0") == 0


def test_missing_data_are_named(finished, export, capsys):
    path = finished[0] / "config.json"
    settings = {"experiment": "images", "source.data": ["nowhere.npz"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    assert export(finished[0]) == 2
    assert "nowhere.npz, which" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--clients", "2"), "--clients names 2: it must be below 2"),
        (("--cells", "a"), "--cells names a: choose from tasks-seed-1"),
        (("--method", "ties"), "--method is ties"),
        (("--method", "local"), "the run is not finished"),
    ],
)
def test_unknown_parts_of_a_run_are_named(finished, export, more, reason, capsys):
    assert export(finished[0], *more) == 2
    assert reason in capsys.readouterr().err


def test_a_folder_that_is_not_a_run_is_named(export, tmp_path, capsys):
    assert export(tmp_path / "nothing") == 2
    assert "is not a run folder" in capsys.readouterr().err
