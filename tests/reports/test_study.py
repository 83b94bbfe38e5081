import csv
import io

import numpy as np
import pytest
from scipy import stats

from potara_jax.reports import document, estimates, study
from potara_jax.reports.estimates import settings_of
from potara_jax.reports.figures import study as figures


def estimate(name, mean, samples="heldout", number=30, **fields):
    known = {"estimator": name, "samples": samples, "number": number}
    return {**known, **fields, "mean": mean, "weight": 0.5, "passes": 2.0}


def potara(value, mean, **fields):
    kind = {"fisher": "exact", "space": "core", "factorisation": "diagonal"}
    damped = {"damping": "relative", "value": value, "merge": "delta"}
    return estimate("potara", mean, **kind, **damped, **fields)


def cell(heterogeneity, seed, estimates, *, federated=0.5, local=0.6, best=0.8):
    return {
        "heterogeneity": heterogeneity,
        "seed": seed,
        "points": [0.0, 1.0],
        "curve": [local, federated],
        "federated": federated,
        "local": local,
        "best_constant": best,
        "best_per_client": best,
        "default": "grid",
        "estimates": estimates,
    }


def results(*cells):
    return {
        "experiment": "digits",
        "settings": {},
        "versions": {},
        "cells": list(cells),
    }


TWO_SEEDS = results(
    cell("0.1", 0, [estimate("grid", 0.70), estimate("hermite", 0.74)]),
    cell("0.1", 1, [estimate("grid", 0.72), estimate("hermite", 0.78)]),
    cell("1", 0, [estimate("grid", 0.60), estimate("hermite", 0.58)], local=0.55),
    cell("1", 1, [estimate("grid", 0.64), estimate("hermite", 0.66)], local=0.65),
)


def by_name(given):
    return {setting.name: setting for setting in settings_of(given)}


@pytest.mark.parametrize("broken", ["federated", "local"])
def test_a_gain_is_over_the_model_that_did_not_diverge(broken):
    models = {"federated": 0.6, "local": 0.6} | {broken: float("nan")}
    given = results(cell("0.1", 0, [estimate("grid", 0.7)], **models))
    assert by_name(given)["grid"].worst_gain == pytest.approx(10)


def test_regret_is_to_the_best_constant_weight_paired_by_seed():
    given = by_name(TWO_SEEDS)["hermite"].regret
    seeds = [(-6 - 22) / 2, (-2 - 14) / 2]  # of both heterogeneities, in points
    assert given.mean == pytest.approx(np.mean(seeds))
    error = np.std(seeds, ddof=1) / np.sqrt(2)
    assert given.half == pytest.approx(stats.t.ppf(0.975, 1) * error)


def test_the_balanced_regret_is_to_the_best_constant_weight_of_that_score():
    one = cell("0.1", 0, [estimate("grid", 0.7, balanced=0.55)])
    given = results(one | {"balanced": {"best_constant": 0.6}})
    assert by_name(given)["grid"].balanced == pytest.approx((-5, 0))
    assert by_name(TWO_SEEDS)["grid"].balanced is None
    (((row,), _),) = study.table(given).groups
    assert (
        dict(zip(study.COLUMNS, row.texts, strict=True))["Balanced"] == "-5.00 ± 0.00"
    )
    (line,) = csv.DictReader(io.StringIO(study.csv_text(given)))
    assert float(line["balanced"]) == pytest.approx(-5)


def test_the_models_have_two_scores_and_the_correction_by_shares():
    balanced = {"federated": 0.4, "local": 0.2, "best_constant": 0.5}
    one = cell("0.1", 0, [estimate("grid", 0.7)]) | {
        "balanced": balanced | {"best_per_client": 0.6},
        "with_prior": 0.85,
        "balanced_with_prior": 0.65,
        "largest_class": 0.3,
    }
    shown = study.models(results(one))
    heads = ["Heterogeneity", "Largest class", "Federated", "With label prior"]
    assert list(shown.columns)[:4] == heads
    ((first,), title), ((second,), other) = shown.groups
    assert first.texts[1:5] == ["30.0", "50.0", "85.0", "60.0"]
    assert second.texts[1:5] == ["–", "40.0", "65.0", "20.0"]  # noqa: RUF001
    assert (title, other) == ("", "With equal shares of each client's classes")


def test_the_difference_to_the_default_is_within_the_cell():
    given = by_name(TWO_SEEDS)
    assert given["hermite"].to_default.mean == pytest.approx((4 - 2 + 6 + 2) / 4)
    assert given["grid"].to_default == (0.0, 0.0)


def test_the_regret_of_every_heterogeneity_is_known():
    regrets = by_name(TWO_SEEDS)["hermite"].regrets
    assert regrets == pytest.approx({"0.1": (-6 - 2) / 2, "1": (-22 - 14) / 2})
    line = list(csv.DictReader(io.StringIO(study.csv_text(TWO_SEEDS))))[1]
    assert float(line["regret_1"]) == pytest.approx(-18)


def test_a_study_that_does_not_know_its_default_is_shown():
    cells = [{k: v for k, v in c.items() if k != "default"} for c in TWO_SEEDS["cells"]]
    assert by_name(results(*cells))["hermite"].to_default is None
    assert study.csv_text(results(*cells))


def test_the_worst_gain_is_that_of_the_worst_heterogeneity():
    # 1: .58 over .55 and .66 over .65
    assert by_name(TWO_SEEDS)["hermite"].worst_gain == pytest.approx((3 + 1) / 2)


def test_one_seed_has_no_interval():
    given = by_name(results(TWO_SEEDS["cells"][0]))["hermite"].regret
    assert given.half == 0.0


def test_the_default_on_training_samples_is_not_compared_with():
    more = [estimate("grid", 0.70), estimate("grid", 0.50, "train")]
    given = by_name(results(cell("1", 0, [*more, estimate("soup", 0.6, "train")])))
    assert given["soup"].to_default.mean == pytest.approx(-10)


def test_the_best_damping_is_shown_and_the_file_has_all():
    grids = [estimate("grid", 0.7)]
    given = results(cell("1", 0, [*grids, potara(0.1, 0.6), potara(1.0, 0.7)]))
    best = estimates.best_damped(settings_of(given))
    assert [s.fields.get("value") for s in best] == [None, 1.0]
    lines = list(csv.DictReader(io.StringIO(study.csv_text(given))))
    assert [line["value"] for line in lines] == ["", "0.1", "1.0"]
    assert float(lines[1]["regret"]) == pytest.approx(-20)
    assert float(lines[2]["accuracy_1"]) == 0.7


def test_names_describe_the_curvature():
    fields = potara(0.3, 0.5)
    assert estimates.name_of(fields) == "potara, exact core, relative 0.3"
    fields |= {"factorisation": "kronecker", "merge": "factor"}
    name = estimates.name_of(fields)
    assert name == "potara, exact kronecker core, relative 0.3, factors merged"


def test_the_page_holds_every_figure_and_line(tmp_path):
    kinds = [
        each
        for samples in ("train", "heldout")
        for number in (5, 30)
        for each in (
            estimate("grid", 0.7, samples, number),
            potara(0.1, 0.6, samples=samples, number=number),
            potara(1.0, 0.7, samples=samples, number=number),
        )
    ]
    given = results(*(cell(h, s, kinds) for h in ("0.1", "tasks") for s in (0, 1)))
    page = document.html(study.report(given, tmp_path))
    stems = {path.stem for path in tmp_path.iterdir()}
    assert stems == {"samples", "damping", "heterogeneity"}
    assert page.count("<img") == 3
    assert "potara, exact core, relative 1" in page
    ((rows, _),) = study.brief(given)[0].groups
    assert len(rows) == 4  # of 30 samples


def test_a_figure_shows_the_balanced_regret_where_it_is_known(tmp_path):
    kinds = [estimate("grid", 0.7, number=n, balanced=0.5 + n / 100) for n in (5, 30)]
    balanced = {"balanced": {name: 0.9 for name in study._MODELS}}
    given = results(*(cell("0.1", seed, kinds) | balanced for seed in (0, 1)))
    assert len(study.report(given, tmp_path).figures) == 4
    assert (tmp_path / "samples_balanced.png").is_file()
    drawn = figures.draw_samples(given, balanced=True)
    (line,) = [
        x
        for x in drawn.axes[1].lines
        if len(x.get_xdata()) == 2 and x.get_marker() != "None"
    ]
    np.testing.assert_allclose(line.get_ydata(), [-35, -10])


def test_the_best_at_each_number_of_samples_is_first():
    given = results(cell("1", 0, [estimate("grid", 0.7), estimate("hermite", 0.75)]))
    ((rows, _),) = study.table(given).groups
    assert [row.texts[:5] for row in rows] == [
        ["hermite", "heldout", "30", "-5.00 ± 0.00", "+5.00 ± 0.00"],
        ["grid", "heldout", "30", "-10.00 ± 0.00", "+0.00 ± 0.00"],
    ]


def test_losses_are_in_their_units():
    grid = estimate("grid", -0.5)
    record = cell("1", 0, [grid], federated=-0.75, local=-1.0, best=-0.25)
    given = results(record) | {"metric": {"name": "loss", "percent": False}}
    assert by_name(given)["grid"].regret.mean == -0.25
    assert by_name(given)["grid"].worst_gain == 0.25
    ((rows, _),) = study.models(given).groups
    assert rows[0].texts == ["Dirichlet 1", "0.750", "1.00", "0.250", "0.250"]
    (line,) = csv.DictReader(io.StringIO(study.csv_text(given)))
    assert float(line["loss_1"]) == 0.5


@pytest.mark.filterwarnings("error")
def test_weights_that_diverged_leave_their_figures_empty(tmp_path):
    nan = float("nan")
    given = results(cell("0.1", 0, [estimate("grid", nan), potara(0.1, nan)]))
    page = study.report(given, tmp_path)
    assert len(page.figures) == 3
