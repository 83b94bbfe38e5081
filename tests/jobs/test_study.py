from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax import merging
from potara_jax.experiments import digits
from potara_jax.jobs import Study, preset, study
from potara_jax.merging import Client, Measured
from potara_jax.reports import estimates as reported
from tests.jobs.tiny import DIGITS, potara

pytestmark = pytest.mark.slow

TINY = DIGITS | {
    "federated.rounds": 2,
    "local.rounds": 2,
    "merging.samples": 8,
}
KEPT = ("tempered_bayes", "grid", "gauss_newton")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A study of few weights, which are enough to see every kind of them."""
    folder = tmp_path_factory.mktemp("study")
    curvature = study._Curvature("empirical", "factor", "diagonal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "_CURVATURES", {curvature: (5, 10)})
        patch.setattr(study, "_has_a_place", lambda entry, task: entry.name in KEPT)
        places = ["--out", folder / "run", "--cache", folder / "cache"]
        assert potara("study", TINY, *places) == 0
    return folder / "run"


def estimates(folder):
    (cell,) = json.loads((folder / "results.json").read_text())["cells"]
    return cell, cell["estimates"]


def test_a_study_leaves_a_table_figures_and_a_page(finished):
    assert {p.name for p in (finished / "figures").iterdir()} == {
        "samples.png",
        "samples_balanced.png",
        "damping.png",
        "heterogeneity.png",
    }
    page = (finished / "report.html").read_text()
    assert "tempered_bayes" in page and page.count("<img") == 4
    lines = (finished / "study.csv").read_text().splitlines()
    results = json.loads((finished / "results.json").read_text())
    settings = reported.settings_of(results)
    assert len(lines) == 1 + len(settings)


def test_every_weight_is_within_the_models_and_scored(finished):
    cell, all_ = estimates(finished)
    assert {e["estimator"] for e in all_} == {
        *("uniform", "potara", "tempered_bayes", "grid", "gauss_newton"),
    }
    for e in all_:
        assert 0 <= e["weight"] <= 1 and 0 <= e["mean"] <= 1
    best = cell["best_per_client"]
    interpolated = [e for e in all_ if e.get("merge", "delta") == "delta"]
    scored = [e for e in interpolated if e["estimator"] != "gauss_newton"]
    assert max(e["mean"] for e in scored) <= best + 1e-9


def test_the_federated_model_is_scored_with_its_label_prior_and_twice(finished):
    cell, all_ = estimates(finished)
    assert cell["with_prior"] != cell["federated"]
    assert 0 <= cell["balanced_with_prior"] <= 1
    uniform = next(e for e in all_ if e["estimator"] == "uniform")
    balanced = cell["balanced"]["curve"]
    middle = balanced[len(balanced) // 2]
    assert uniform["balanced"] == pytest.approx(middle)


def test_costly_estimators_use_only_held_out_samples(finished):
    _, all_ = estimates(finished)
    newton = {
        (e["samples"], e["number"]) for e in all_ if e["estimator"] == "gauss_newton"
    }
    assert newton == {("heldout", n) for n in (5, 10, 30)}


def test_factor_curvature_is_merged_in_both_spaces(finished):
    _, all_ = estimates(finished)
    spaces = [e["merge"] for e in all_ if e["estimator"] == "potara"]
    settings = len(study._ALL_DAMPINGS)
    assert settings == 15
    assert spaces.count("factor") == spaces.count("delta") == 2 * 2 * settings


def test_passes_are_counted(finished):
    _, all_ = estimates(finished)
    passes = {e["estimator"]: e["passes"] for e in all_}
    assert passes["potara"] == 2 * (1 + 2) / 3
    assert passes["tempered_bayes"] == pytest.approx(11 / 3)
    assert passes["grid"] == pytest.approx(1)
    assert passes["uniform"] == 0


def test_samples_that_are_left_out_do_not_count():
    inputs = jnp.ones((2, 8, 3)).at[0, 1].set(jnp.nan).at[1, 6].set(jnp.inf)
    samples = merging.Samples((inputs, jnp.zeros((2, 8), int)), jnp.array([8, 7]))
    counts = study._counts(samples, (1, 5, 10))
    np.testing.assert_array_equal(counts, [[1, 4, 7], [1, 5, 6]])


def test_estimators_use_the_first_samples():
    """Weights at 5 of 8 samples are those of the estimator on 5 samples alone."""
    mean = lambda c: Measured((c.weight * c.examples).sum() / c.weight.sum())
    client = Client(*[None] * 3, jnp.arange(8.0), jnp.ones(8).at[7].set(0), None, None)
    weights = jax.jit(study._by_number(mean, (5, 10)))(client).weight
    np.testing.assert_allclose(weights, [2.0, 3.0])


def test_the_seeds_are_those_of_no_table():
    given = preset(digits.EXPERIMENT, Study())
    assert set(given.cells.seeds).isdisjoint(digits.EXPERIMENT.cells.seeds)
    assert (given.merging.samples, given.merging.grid_points) == (100, 21)
    assert "tasks" in given.cells.heterogeneity
