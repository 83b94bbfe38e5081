"""A run in a folder, also killed in a process of its own; and a run in memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import potara_jax as pj
from potara_jax import memory
from potara_jax.adapters import peft
from potara_jax.data import digits as images
from potara_jax.experiment import context, merges, phases, rows
from potara_jax.experiments import digits
from potara_jax.jobs import Refused, Table, configuration, run
from potara_jax.runs.store import Cell
from tests.jobs.tiny import DIGITS, options, potara, reproducible

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TINY = DIGITS | {
    "federated.rounds": 3,
    "federated.longer_rounds": 4,
    "local.rounds": 2,
    "merging.methods": ("uniform", "grid", "fisher"),
}
EXPERIMENT = digits.EXPERIMENT.set(TINY)
(CELL,) = (Cell("0.5", 3),)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def start(cache: Path, out: Path, *more: str) -> subprocess.Popen:
    words = [*options(TINY), "--out", str(out), "--cache", str(cache), *more]
    return subprocess.Popen(
        [sys.executable, "-m", "potara_jax.cli.main", "run", "digits", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def again(cache: Path, out: Path, *more: str) -> int:
    """The status of the same command, in this process."""
    return potara("run", TINY, "--out", out, "--cache", cache, *more)


@pytest.fixture(scope="module")
def undisturbed(cache, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert again(cache, folder) == 0
    return folder


# --- In a folder ---------------------------------------------------------------------


def test_a_run_leaves_everything_that_it_promises(undisturbed):
    names = {p.name for p in undisturbed.iterdir() if not p.name.startswith(".")}
    files = {"config.json", "versions.json", "results.json", "clients.csv"}
    files |= {"metrics.jsonl", "report.html"}
    assert names == files | {"figures", "checkpoints", "cells", "adapters"}
    figures = {p.name for p in (undisturbed / "figures").iterdir()}
    expected = ("accuracy", "segment", "damping", "communication", "clients")
    assert figures == {f"{name}.png" for name in expected}


def test_the_ledger_counts_what_travelled(undisturbed):
    per_client = 2 * (64 + 64) * 4  # rank, inputs + outputs, float32
    by_name = {m["method"]: m for m in results(undisturbed)["methods"]}
    federated, merged = by_name["federated"], by_name["potara core"]
    assert federated["bytes_up"] == 3 * 3 * per_client
    assert federated["bytes_down"] == (3 + 1) * 3 * per_client
    assert merged["bytes_up"] == federated["bytes_up"]
    assert merged["bytes_down"] == federated["bytes_down"]
    assert by_name["local"]["bytes_up"] == by_name["local"]["bytes_down"] == 0
    assert by_name["federated + fine-tuning"]["bytes_up"] == federated["bytes_up"]
    assert merged["local_steps"] == (3 + 2) * 2
    assert merged["inference_parameters"] == 2 * per_client // 4
    weighed, corrected = by_name["tempered_bayes"], by_name["federated + label prior"]
    numbers = 11 * (11 + 2 + 4) + 1  # temperatures; points, slope, spread
    assert weighed["bytes_up"] - merged["bytes_up"] == 3 * 4 * numbers
    assert weighed["bytes_down"] - merged["bytes_down"] == 3 * (4 + 4 + 4 + 1)
    for way in ("bytes_up", "bytes_down"):
        assert corrected[way] - federated[way] == 3 * 10 * 4
        both = by_name["label prior + tempered_bayes"][way] - weighed[way]
        assert both == corrected[way] - federated[way]
    longer = by_name["federated, 4 rounds"]
    assert longer["bytes_up"] == 4 * 3 * per_client and longer["local_steps"] == 4 * 2
    assert longer["loss"] != federated["loss"]


def test_oracles_are_marked_and_bound_the_constant_weights(undisturbed):
    rows = {m["method"]: m for m in results(undisturbed)["methods"]}
    marked = {name for name, row in rows.items() if row["oracle"]}
    assert marked == {"best constant weight", "best weight per client"}
    best = rows["best weight per client"]["mean"]
    assert best >= rows["best constant weight"]["mean"] >= rows["uniform"]["mean"]
    assert best >= rows["grid"]["mean"]


def test_rows_say_how_they_were_merged(undisturbed):
    rows = {m["method"]: m for m in results(undisturbed)["methods"]}
    merged_by = lambda name: tuple(
        rows[name][key] for key in ("weighing", "merge", "parent")
    )
    assert merged_by("local") == merged_by("base") == (None, None, None)
    assert merged_by("uniform") == ("constant", "linear", "federated")
    assert merged_by("potara core") == ("potara core", "linear", "federated")
    assert merged_by("grid") == ("grid", "linear", "federated")


def test_a_classification_has_two_scores_and_the_correction_by_shares(undisturbed):
    """Three clients of the digits' ten classes, by Dirichlet 0.5."""
    given = results(undisturbed)
    for row in given["methods"]:
        assert len(row["balanced"]) == 3
        assert row["balanced_mean"] == pytest.approx(np.mean(row["balanced"]))
    rows = {m["method"]: m for m in given["methods"]}
    floor = rows["largest class"]
    assert all(
        1 / share == pytest.approx(round(1 / share)) for share in floor["balanced"]
    )
    assert rows["federated + label prior"]["loss"] != rows["federated"]["loss"]
    assert (
        rows["federated + label prior"]["inference_parameters"]
        == 10 + (rows["federated"]["inference_parameters"])
    )
    assert 10**7 < given["memory"]["process"] < memory.of_device()
    prior = given["diagnostics"][0]["label_prior"]
    assert prior["used"] is False and prior["plain"] != prior["corrected"]


def test_the_default_weight_says_how_sure_it_is(undisturbed):
    rows = {m["method"]: m for m in results(undisturbed)["methods"]}
    for name in ("tempered_bayes", "label prior + tempered_bayes"):
        (low, high), weights = rows[name]["interval"], rows[name]["weights"]
        assert all(a <= w <= b for a, w, b in zip(low, weights, high, strict=True))
        assert all(isinstance(gains, bool) for gains in rows[name]["gains"])
    assert "interval" not in rows["uniform"]


def test_a_killed_run_ends_with_the_same_results(cache, undisturbed, tmp_path):
    folder = tmp_path / "killed"
    process = start(cache, folder)
    _wait_for_lines(folder / "metrics.jsonl", 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "results.json").exists()
    assert again(cache, folder) == 0
    for name in ("config.json", "clients.csv", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()
    assert reproducible(results(folder)) == reproducible(results(undisturbed))


def test_weights_and_scores_are_not_measured_again(
    cache, undisturbed, tmp_path, monkeypatch
):
    monkeypatch.setattr(context, "_LONG", -1.0)
    score, scored, out = rows.score, [], tmp_path / "run"

    def stop(at, adapters):
        if len(scored) >= 6:
            raise KeyboardInterrupt
        scored.append(adapters)
        return score(at, adapters)

    with monkeypatch.context() as patch:
        patch.setattr(rows, "score", stop)
        with pytest.raises(KeyboardInterrupt):
            run(EXPERIMENT, out=out, cache=cache)
    fail = lambda *args: pytest.fail("a weight is measured again")
    monkeypatch.setattr(merges, "measure", fail)
    scored_again = []
    monkeypatch.setattr(rows, "score", lambda *x: scored_again.append(x) or score(*x))
    resumed = run(EXPERIMENT, out=out, cache=cache).results
    expected = reproducible(results(undisturbed))["methods"]
    assert reproducible(json.loads(json.dumps(resumed)))["methods"] == expected
    number = len([row for row in expected if not row["oracle"]])
    assert 0 < len(scored_again) < number
    assert not (out / "measured").exists()


def _wait_for_lines(path: Path, number: int, process) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) >= number:
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate())


def test_a_finished_run_is_not_run_again(cache, undisturbed, capsys):
    before = (undisturbed / "results.json").stat().st_mtime_ns
    assert again(cache, undisturbed) == 0
    assert "potara core" in capsys.readouterr().out
    assert (undisturbed / "results.json").stat().st_mtime_ns == before


def test_another_configuration_in_the_folder_is_refused(cache, undisturbed, capsys):
    assert again(cache, undisturbed, "--lora.rank", "3") == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert "lora.rank 2, not 3" in error


def test_a_run_is_traced_if_profiling_is_on(cache, tmp_path, monkeypatch):
    """Also if it is interrupted, here after two rounds."""

    def interrupt(history, *_):
        if len(history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(phases, "name_left_out", interrupt)
    words = ("--profile", "--out", tmp_path / "run", "--cache", cache)
    assert potara("run", TINY, *words) == 130
    (traced,) = (tmp_path / "run" / "profile").iterdir()
    assert traced.name == "federated" and any(traced.rglob("*.xplane.pb"))


def test_a_client_whose_update_is_not_finite_is_named(tmp_path, capsys, monkeypatch):
    whole = images.federation

    def with_broken_images(*args, **kwargs):
        made = whole(*args, **kwargs)
        broken = made.train.index[1, TINY["merging.samples"] : made.train.count[1]]
        inputs = made.pool.inputs.at[broken].set(jnp.nan)
        return made._replace(pool=made.pool._replace(inputs=inputs))

    monkeypatch.setattr(images, "federation", with_broken_images)
    out = tmp_path / "run"
    assert potara("run", TINY, "--out", out, "--cache", tmp_path) == 0
    left_out = results(out)["diagnostics"][0]["left_out"]
    assert {entry["client"] for entry in left_out} == {1}
    assert "client 1 is left out" in capsys.readouterr().err
    assert "client 1" in (out / "report.html").read_text()
    for row in results(out)["methods"]:
        assert all(0 <= value <= 1 for value in row["accuracy"])


# --- In memory -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def written() -> list:
    """What the run in memory writes, outside the caches of bases and programs."""
    return []


@pytest.fixture(scope="module")
def in_memory(cache, undisturbed, written):
    """A run that keeps nothing on disk; it reads the base that another has made."""

    caches = str(cache), os.environ["JAX_COMPILATION_CACHE_DIR"]

    def audit(event, arguments):
        opened = event == "open" and isinstance(arguments[1], str)
        opened = opened and set(arguments[1]) & set("wax+")
        made = opened or event in ("os.mkdir", "os.rename")
        if watching and made and not str(arguments[0]).startswith(caches):
            written.append(arguments[0])

    watching = True
    sys.addaudithook(audit)
    result = run(EXPERIMENT, cache=cache, progress=False)
    watching = False
    return result


def test_a_run_in_memory_gives_what_a_run_in_a_folder_gives(in_memory, undisturbed):
    given = reproducible(json.loads(json.dumps(in_memory.results)))
    expected = reproducible(results(undisturbed))
    assert given["settings"] == {
        name: value for name, value in expected["settings"].items() if name != "load"
    }
    del given["settings"], expected["settings"]
    assert given == expected


def test_a_run_in_memory_writes_no_file(in_memory, written):
    assert written == []


def test_the_table_is_for_a_terminal_and_for_a_notebook(in_memory):
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(in_memory.table())
    text, page = console.export_text(), in_memory.table()._repr_html_()
    for row in ("federated", "potara core", "uniform", "best weight per client"):
        assert row in text and row in page
    assert "<table" in page
    assert in_memory.table() == in_memory.tables()[0]


def test_every_row_has_its_adapters(in_memory):
    names = {m["method"] for m in in_memory.results["methods"] if not m["oracle"]}
    assert set(in_memory.adapters) == names - {"ensemble", "largest class"}
    assert len(in_memory.adapters) == len(names) - 2
    (entry,) = in_memory.adapters["federated"].values()
    assert entry["a"].shape == (3, 64, 2)
    with pytest.raises(KeyError, match="'ties': choose from "):
        in_memory.adapters["ties"]


def test_adapters_are_those_that_a_folder_keeps(in_memory, undisturbed):
    kept = run(EXPERIMENT, out=undisturbed, extra={"load": []}, progress=False)
    assert set(kept.adapters) == {
        *("potara core", "tempered_bayes"),
        *("federated", "federated + label prior"),
        "local",
    }
    for method, adapter in kept.adapters.items():
        mine = in_memory.adapters[method]
        jax.tree.map(np.testing.assert_array_equal, adapter, mine)


def test_adapters_of_several_cells_are_selected_by_cell(in_memory):
    other = in_memory.experiment.set({"cells.seeds": (3, 4)})
    several = pj.Result(
        in_memory.job,
        other,
        in_memory.results,
        in_memory.store,
        in_memory.make_problem,
    )
    assert several.cells == [Cell("0.5", 3), Cell("0.5", 4)]
    with pytest.raises(ValueError, match=r"several cells: .* 0\.5-seed-3, 0\.5-seed-4"):
        _ = several.adapters
    assert "local" in several.adapters_of(CELL)
    assert list(several.adapters_of(Cell("0.5", 4))) == []


def test_the_report_is_that_of_the_folder(in_memory, undisturbed, tmp_path):
    page = in_memory.report(tmp_path / "report")
    assert page == tmp_path / "report" / "report.html"
    assert page.read_text().count("<img") == 5
    mine = (tmp_path / "report" / "clients.csv").read_bytes()
    assert mine == (undisturbed / "clients.csv").read_bytes()


def test_models_are_exported_as_peft_loads_them(in_memory, tmp_path):
    out = in_memory.export(tmp_path / "out", method="local", clients=[0, 2])
    made = sorted(path.name for path in (out / CELL.name).iterdir())
    assert made == ["client-000", "client-002"]
    read = peft.read(out / CELL.name / "client-002")
    (entry,) = read.adapter.values()
    (kept,) = in_memory.adapters["local"].values()
    expected = 8 * np.float64(kept["a"][2]) @ np.float64(kept["b"][2])
    np.testing.assert_allclose(np.float64(entry["a"]) @ entry["b"], expected, rtol=1e-5)
    corrected = in_memory.export(tmp_path / "prior", method="federated + label prior")
    read = peft.read(corrected / CELL.name / "client-001")
    problem = in_memory.make_problem()
    name = next(name for name, entry in read.adapter.items() if "bias" in entry)
    bias = in_memory.adapters["federated + label prior"]["logit bias"]["bias"][1]
    expected = problem.base["head"]["bias"] + bias
    np.testing.assert_allclose(read.adapter[name]["bias"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="already exists"):
        in_memory.export(tmp_path / "out", method="local", clients=[0])
    with pytest.raises(ValueError, match="no adapters of 'ties'"):
        in_memory.export(tmp_path / "other", method="ties")


# --- Settings ------------------------------------------------------------------------


def test_the_configuration_leaves_out_what_does_not_change_results():
    config = configuration(digits.EXPERIMENT, Table())
    assert (config["experiment"], config["job"]) == ("digits", "run")
    assert config["cells.seeds"] == [0, 1, 2]
    assert config["pretraining.seed"] == 0
    assert {"out", "rerun", "cache", "data_digest"}.isdisjoint(config)
    assert configuration(digits.EXPERIMENT, pj.Compare(("fedsa",))) == config | {
        "job": "compare",
        "compare.algorithms": ["fedsa"],
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lora.rank": 0}, r"lora\.rank is 0: it must be"),
        ({"lora.rank": 65}, "rank 65"),
        ({"lora.targets": ("qurey",)}, "'qurey'"),
        (
            {"merging.methods": ("gird",)},
            r"merging\.methods is gird: it must be one of uniform,",
        ),
        ({"participation.newcomers": 0.99}, "newcomers"),
        ({"cells.clients": 5000}, "5000 clients"),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_written(
    changes, reason, tmp_path
):
    with pytest.raises(Refused, match=reason) as refused:
        run(EXPERIMENT.set(changes), cache=tmp_path / "cache", progress=False)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "cache" / "bases").exists()


def test_a_federated_model_of_several_adapters_is_refused(cache):
    experiment = EXPERIMENT.set({"federated.algorithm": "fedalt"})
    reason = r"federated\.algorithm is fedalt: its model is not one adapter"
    with pytest.raises(Refused, match=reason):
        run(experiment, cache=cache, progress=False)
