"""A comparison as its user has it, on a federation of four."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import potara_jax as pj
from potara_jax.experiment.problem import Resources
from potara_jax.experiments import digits
from potara_jax.federated import registry
from potara_jax.jobs import compare, preset
from potara_jax.reports import comparison
from tests.jobs.examples import example, forget_later
from tests.jobs.tiny import DIGITS, potara

pytestmark = pytest.mark.slow

TINY = DIGITS | {
    "cells.clients": 4,
    "federated.rounds": 4,
    "local.rounds": 2,
    "participation.newcomers": 0.25,
    "merging.methods": ("uniform", "lorahub"),
}
MINE = "mine"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Iterator[tuple[Path, dict]]:
    folder = tmp_path_factory.mktemp("compare")
    (folder / "mine.py").write_text(example("A federated algorithm"))
    settings = TINY | {"algorithms": ("fedsa", "fdlora", "flora", "ffa", MINE)}
    places = {"load": "mine.py", "out": "run", "cache": "cache"}
    words = [word for k, v in places.items() for word in (f"--{k}", folder / v)]
    with pytest.MonkeyPatch.context() as patch:
        forget_later(patch)
        assert potara("compare", settings, *words) == 0
        yield folder / "run", json.loads((folder / "run/results.json").read_text())


def rows(results) -> dict:
    return {record["method"]: record for record in results["methods"]}


def test_a_users_algorithm_is_in_the_table(finished):
    _, results = finished
    record = rows(results)[MINE]
    assert 0 < record["mean"] < 1 and len(record["curve"]) == 6
    lines = [
        line for line in example("A federated algorithm").splitlines() if line.strip()
    ]
    assert len(lines) <= 40


def test_every_row_occurs_once(finished):
    names = [record["method"] for record in finished[1]["methods"]]
    expected = {"base", "federated", "local", "federated + fine-tuning", "fedsa"}
    expected |= {
        "local, 2 rounds",
        "federated, rank 2r",
        "local, rank 2r",
        "feddpa_f",
        "fdlora, plain mean",
        "fdlora, AdaFusion",
    }
    expected |= {"potara core", "potara core (fedsa)", "tempered_bayes (mine)"}
    expected |= {"federated + label prior", "ffa + label prior"}
    assert expected <= set(names)
    assert "fedsa + label prior" not in names, "its clients have models of their own"
    assert len(set(names)) == len(names)
    assert "potara core (flora)" not in names, "its base is another one"


def bytes_of_merges(results):
    """The most that a merge of both parents sends and receives, with its weight."""
    merged = [record for record in results["methods"] if record["kind"] == "merge"]
    return max(r["bytes_up"] for r in merged) + max(r["bytes_down"] for r in merged)


def test_budgets_are_kept_where_they_can_be(finished):
    _, results = finished
    budget, limit = rows(results)["potara core"], bytes_of_merges(results)
    for record in results["methods"]:
        spent = record["bytes_up"] + record["bytes_down"]
        fits = spent <= limit and record["local_steps"] <= budget["local_steps"]
        assert record["over"] == (not fits)
        assert (record["equal_bytes"] is None) <= (spent > limit)


def test_a_row_is_its_curve_at_the_last_round_within_the_budget(finished):
    _, results = finished
    budget, limit = rows(results)["potara core"], bytes_of_merges(results)
    record = rows(results)["fedsa"]
    fit = [
        p
        for p in record["curve"]
        if p["bytes"] <= limit and p["steps"] <= budget["local_steps"]
    ]
    assert record["mean"] == fit[-1]["mean"]
    assert record["bytes_up"] + record["bytes_down"] == fit[-1]["bytes"]
    steps = [p for p in record["curve"] if p["steps"] <= budget["local_steps"]]
    assert record["equal_steps"] == steps[-1]["mean"]


def test_newcomers_are_scored_separately(finished):
    _, results = finished
    for record in results["methods"]:
        assert record["newcomers"] == pytest.approx(record["accuracy"][3])
        assert record["mean"] == pytest.approx(np.mean(record["accuracy"][:3]))
    curve = (json.loads(line) for line in (finished[0] / "metrics.jsonl").open())
    joined = [r for r in curve if r["phase"] == "fedsa, newcomers"]
    assert len(joined) == TINY["local.rounds"]


def test_a_comparison_leaves_a_table_figures_and_a_page(finished):
    folder, results = finished
    assert {p.name for p in (folder / "figures").iterdir()} == {
        "accuracy.png",
        "bytes.png",
        "parents.png",
        "clients.png",
    }
    page = (folder / "report.html").read_text()
    assert page.count("<img") == 4 and MINE in page
    entries = [e for e in comparison.entries(results) if not e.summary.oracle]
    means = [entry.summary.mean for entry in entries]
    assert means == sorted(means, reverse=True)


def test_rounds_are_counted_for_the_display(finished):
    job = pj.Compare(("fedsa", "fdlora", "flora", "ffa", "fedprox"))
    lines = [json.loads(x) for x in (finished[0] / "metrics.jsonl").open()]
    nobody = 2 * TINY["local.rounds"]  # joins flora and ffa: all have their models
    assert len(lines) + nobody == job.rounds(digits.EXPERIMENT.set(TINY))


def test_an_unknown_algorithm_is_refused(tmp_path, capsys):
    words = {"algorithms": "fedx", "out": tmp_path / "x", "cache": tmp_path}
    assert potara("compare", words) == 2
    assert "algorithms is fedx: it must be one of" in capsys.readouterr().err


def test_an_algorithm_that_would_share_nothing_is_refused_and_left_out(
    tmp_path, capsys
):
    settings = TINY | {"algorithms": "fedper", "out": tmp_path / "x"}
    assert potara("compare", settings | {"cache": tmp_path}) == 2
    assert "FedPer shares nothing here" in capsys.readouterr().err
    for depth, left_out in ((1, {"fedper", "fedrep"}), (2, set())):
        experiment = digits.EXPERIMENT.set(DIGITS | {"source.depth": depth})
        problem = experiment.make_problem(experiment, Resources(tmp_path))
        names = compare.possible(experiment, problem, registry.algorithms())
        assert {*registry.algorithms()} - {*names} == left_out


def test_modules_too_small_for_twice_the_rank_are_refused(tmp_path, capsys):
    settings = TINY | {"lora.rank": 40, "out": tmp_path / "x", "cache": tmp_path}
    assert potara("compare", settings) == 2
    error = capsys.readouterr().err
    assert "lora.rank is 40: a comparison also trains models of twice" in error
    assert "between 1 and 64" in error


@pytest.mark.parametrize("text", ["raise ValueError('no')", "syntax error"])
def test_a_file_that_cannot_be_loaded_is_refused(tmp_path, capsys, text):
    file = tmp_path / "broken.py"
    file.write_text(text)
    assert potara("run", {"load": file, "out": tmp_path / "x"}) == 2
    assert "broken.py, line 1: " in capsys.readouterr().err


def test_all_algorithms_are_compared_by_default():
    experiment = preset(digits.EXPERIMENT, pj.Compare())
    assert (experiment.federated.rounds, experiment.local.rounds) == (30, 15)
    names = pj.Compare().names(experiment)
    assert set(names) == set(registry.algorithms()) - {"local", "fedit"}
