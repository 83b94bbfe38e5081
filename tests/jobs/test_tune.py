from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from potara_jax.cli import catalogue
from potara_jax.experiment import federating
from potara_jax.experiments import digits
from potara_jax.federated.registry import algorithms
from potara_jax.jobs import Tune, preset, tune
from potara_jax.reports import tuning
from potara_jax.runs.store import Cell
from tests.helpers_federated import task
from tests.jobs.tiny import DIGITS, potara

pytestmark = pytest.mark.slow

TINY = DIGITS | {
    "cells.seeds": (100,),
    "federated.rounds": 2,
    "merging.samples": 30,
    "algorithms": "ffa",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    places = ["--out", folder / "run", "--cache", folder / "cache"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "RATES", (1e-9, 0.3))
        assert potara("tune", TINY, *places) == 0
    return folder / "run"


def test_the_best_trial_is_written_down(finished):
    results = json.loads((finished / "results.json").read_text())
    still, moving = results["trials"]
    assert [t["trial"]["local_rate"] for t in (still, moving)] == [1e-9, 0.3]
    assert still["mean"] != moving["mean"]
    best = max((still, moving), key=lambda t: t["mean"])["trial"]
    assert json.loads((finished / "tuned.json").read_text()) == {"ffa": best}
    assert "ffa" in (finished / "report.html").read_text()


def test_a_trial_that_diverged_is_never_best():
    trial = lambda name, rate, mean: {
        **{"algorithm": name, "trial": {"local_rate": rate}, "mean": mean},
    }
    nan = float("nan")
    trials = [trial("a", 1.0, nan), trial("a", 2.0, 0.1), trial("b", 1.0, nan)]
    results = Tune().results([{"trials": trials}])
    assert results["best"] == {"a": {"local_rate": 2.0}}
    rows = tuning.table(results).groups[0].rows
    assert [row.kind for row in rows] == ["", "best", ""]
    assert rows[2].texts[-1] == "diverged"
    assert json.loads(Tune().files(results)["tuned.json"]) == results["best"]
    at = SimpleNamespace(cell=Cell("0.1", 0))
    line = Tune().summary(at, {"trials": trials[2:]})
    assert line == "0.1-seed-0: every trial diverged"


@pytest.mark.parametrize("name", catalogue.names())
def test_a_search_is_apart_from_every_seed_of_the_tables(name):
    experiment = catalogue.find(name)
    cells = preset(experiment, Tune()).cells
    assert set(experiment.cells.seeds) <= set(cells.apart_from)
    assert not set(experiment.cells.seeds) & set(cells.seeds)


def test_all_algorithms_but_local_training_are_tuned_by_default():
    assert set(Tune().names()) == set(algorithms()) - {"local"}
    assert Tune(("ffa", "local")).names() == ["ffa"]


def test_rounds_are_counted_for_the_display():
    experiment = digits.EXPERIMENT.set({"federated.rounds": 3})
    assert Tune(("ffa", "scaffold")).rounds(experiment) == 3 * 6 * 2


def test_every_algorithm_has_as_many_trials():
    assert {len(tune.trials(name)) for name in algorithms() if name != "local"} == {6}


def test_trials_are_arguments_of_their_algorithms():
    for name in algorithms():
        for trial in tune.trials(name):
            made = federating.make_algorithm(digits.EXPERIMENT, task, name, **trial)
            assert made.name


def test_the_best_is_that_of_the_mean_over_cells():
    trial = lambda rate, mean: {
        "algorithm": "x",
        "trial": {"local_rate": rate},
        "mean": mean,
    }
    first = {"trials": [trial(1.0, 0.5), trial(2.0, 0.6)]}
    second = {"trials": [trial(1.0, 0.9), trial(2.0, 0.6)]}
    results = Tune().results([first, second])
    assert results["best"] == {"x": {"local_rate": 1.0}}
    assert [t["mean"] for t in results["trials"]] == pytest.approx([0.7, 0.6])
