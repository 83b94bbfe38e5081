from __future__ import annotations

import pytest

from potara_jax.reports import summary
from potara_jax.reports.summary import PARENTS
from tests.reports.records import by_hand, record
from tests.reports.synthetic import METHODS, synthetic


def rows_by_method(results):
    return {row.method: row for row in summary.summarise(results)}


# --- Aggregation ---------------------------------------------------------------------


def test_means_and_sample_deviations_over_seeds():
    row = rows_by_method(by_hand())["potara core"]
    assert row.seeds == 2
    assert row.mean == pytest.approx(0.83)
    assert row.spread == pytest.approx(0.14 / 2**0.5)
    assert row.worst_decile == pytest.approx(0.63)
    assert (row.bytes_up, row.bytes_down) == (1000, 2500)
    assert (row.local_steps, row.inference_parameters) == (40, 64)
    assert row.seconds == 2.5


def test_the_gain_is_paired_with_each_seeds_better_parent():
    rows = rows_by_method(by_hand())
    assert rows["potara core"].gain == pytest.approx((0.10 + 0.01) / 2)
    assert rows["potara core"].gain_spread == pytest.approx(0.09 / 2**0.5)
    assert rows[PARENTS[0]].gain == pytest.approx((0.0 - 0.15) / 2)


@pytest.mark.parametrize("missing", PARENTS)
def test_without_a_parent_there_is_no_gain(missing):
    results = by_hand()
    results["methods"] = [r for r in results["methods"] if r["method"] != missing]
    row = rows_by_method(results)["potara core"]
    assert row.gain is None
    assert row.gain_spread is None


def test_a_seed_without_both_parents_does_not_count_in_the_gain():
    results = by_hand()
    del results["methods"][1]
    row = rows_by_method(results)["potara core"]
    assert row.seeds == 2
    assert row.gain == pytest.approx(0.10)


def test_the_weight_is_the_mean_over_modules_clients_and_seeds():
    rows = rows_by_method(by_hand())
    assert rows["potara core"].weight == pytest.approx((0.4 + 0.6) / 2)
    assert rows["oracle"].weight is None


def test_one_seed_has_no_spread():
    summaries = summary.summarise(synthetic(seeds=1))
    assert {each.spread for each in summaries} == {0.0}
    assert summary.over_seeds(summaries) == "one seed"


def test_rows_keep_the_order_of_presentation():
    rows = summary.summarise(synthetic(methods=5))
    expected = [(h, m) for h in ("0.1", "tasks") for m in METHODS[:5]]
    assert [(row.heterogeneity, row.method) for row in rows] == expected


def test_the_best_is_not_an_oracle_and_a_tie_has_two():
    results = by_hand()
    assert [r.method for r in summary.best(summary.summarise(results))] == [
        "potara core"
    ]
    results["methods"] += [record("twin", 0, 0.90), record("twin", 1, 0.76)]
    winners = summary.best(summary.summarise(results))
    assert [row.method for row in winners] == ["potara core", "twin"]


def test_what_diverged_is_never_best_and_comes_last():
    results, nan = by_hand(), float("nan")
    results["methods"].insert(0, record("broken", 0, nan))
    results["methods"].append(record("broken", 1, 0.99))
    rows = summary.ranked(results)
    assert [row.method for row in summary.best(rows)] == ["potara core"]
    assert rows[-1].method == "broken"
    assert [r.method for r in rows[:2]] == ["oracle", "potara core"]


def test_the_gain_is_over_the_parent_that_did_not_diverge():
    results = by_hand()
    for each in results["methods"]:
        if each["method"] == PARENTS[0]:
            each["mean"] = float("nan")
    assert rows_by_method(results)["potara core"].gain == pytest.approx(0.105)


def test_ranked_summaries_keep_the_order_of_heterogeneities():
    rows = summary.ranked(synthetic(methods=5))
    assert [row.heterogeneity for row in rows] == ["0.1"] * 5 + ["tasks"] * 5
    means = [row.mean for row in rows]
    assert means == sorted(means[:5], reverse=True) + sorted(means[5:], reverse=True)
