import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.jobs import run, study
from potara_jax.merging import Client, Measured
from potara_jax.reports import study_report

TINY = {
    "seeds": 3,
    "heterogeneity": 0.5,
    "clients": 3,
    "federated-rounds": 2,
    "local-rounds": 2,
    "local-steps": 2,
    "samples": 8,
    "grid-points": 3,
    "base-steps": 3,
    "depth": 1,
    "targets": "query",
    "rank": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of few estimators, which are enough to see every kind of weight."""
    folder = tmp_path_factory.mktemp("study")
    words = [word for k, v in TINY.items() for word in (f"--{k}", str(v))]
    with pytest.MonkeyPatch.context() as patch:
        key = ("empirical", "factor", "diagonal")
        patch.setattr(study, "_CURVATURES", {key: (5, 10)})
        by_loss = study._by_loss
        kept = ("hermite_pooled", "grid", "gauss_newton")
        few = lambda *args: {k: v for k, v in by_loss(*args).items() if k in kept}
        patch.setattr(study, "_by_loss", few)
        places = ["--out", str(folder / "run"), "--cache", str(folder / "cache")]
        assert run.main(["study", "digits", *words, *places]) == 0
    return folder / "run"


def estimates(folder):
    (cell,) = json.loads((folder / "results.json").read_text())["cells"]
    return cell, cell["estimates"]


def test_a_study_leaves_a_table_figures_and_a_page(finished):
    assert {p.name for p in (finished / "figures").iterdir()} == {
        "samples.png",
        "damping.png",
        "heterogeneity.png",
    }
    page = (finished / "report.html").read_text()
    assert "hermite_pooled" in page and page.count("<img") == 3
    lines = (finished / "study.csv").read_text().splitlines()
    settings = study_report.settings_of(
        json.loads((finished / "results.json").read_text())
    )
    assert len(lines) == 1 + len(settings)


def test_every_weight_is_within_the_models_and_scored(finished):
    cell, found = estimates(finished)
    assert {e["estimator"] for e in found} == {
        *("uniform", "potara", "hermite_pooled", "grid", "gauss_newton"),
    }
    for e in found:
        assert 0 <= e["weight"] <= 1 and 0 <= e["mean"] <= 1
    best = cell["best_per_client"]
    interpolated = [e for e in found if e.get("merge", "delta") == "delta"]
    scored = [e for e in interpolated if e["estimator"] != "gauss_newton"]
    assert max(e["mean"] for e in scored) <= best + 1e-9


def test_costly_estimators_look_at_held_out_samples_alone(finished):
    _, found = estimates(finished)
    newton = {
        (e["samples"], e["number"]) for e in found if e["estimator"] == "gauss_newton"
    }
    assert newton == {("heldout", n) for n in (5, 10, 30)}


def test_factor_curvature_is_merged_in_both_spaces(finished):
    _, found = estimates(finished)
    spaces = [e["merge"] for e in found if e["estimator"] == "potara"]
    assert spaces.count("factor") == spaces.count("delta") == 2 * 2 * 15


def test_passes_are_counted(finished):
    _, found = estimates(finished)
    passes = {e["estimator"]: e["passes"] for e in found}
    assert passes["potara"] == 2 * (1 + 2) / 3
    assert passes["hermite_pooled"] == pytest.approx(4 / 3)
    assert passes["grid"] == pytest.approx(1)
    assert passes["uniform"] == 0


def test_the_first_samples_are_looked_at():
    """Weights at 5 of 8 samples are those of the estimator on 5 samples alone."""
    mean = lambda c: Measured((c.weight * c.examples).sum() / c.weight.sum())
    client = Client(*[None] * 3, jnp.arange(8.0), jnp.ones(8).at[7].set(0), None, None)
    found = jax.jit(study._by_number(mean, (5, 10)))(client).weight
    np.testing.assert_allclose(found, [2.0, 3.0])
