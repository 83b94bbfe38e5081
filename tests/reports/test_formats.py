import numpy as np
import pytest

from potara_jax.reports import formats
from potara_jax.reports.formats import Metric

LOSS = Metric("loss", percent=False)


@pytest.mark.parametrize(
    ("heterogeneity", "text"),
    [
        *(("0.1", "Dirichlet 0.1"), ("1.0", "Dirichlet 1")),
        ("tasks", "one task or transformation per client"),
        ("natural", "the clients' own data"),
        *(("shards2", "2 shards per client"), ("by writer", "by writer")),
    ],
)
def test_labels(heterogeneity, text):
    assert formats.label(heterogeneity) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1 kB"), (12_345, "12.3 kB")),
        *((999_600, "1 MB"), (32_457_280, "32.5 MB"), (5e12, "5000 GB")),
    ],
)
def test_sizes(number, text):
    assert formats.size(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0, "0"), (0.3, "0.300"), (0.012345, "0.0123"), (12.34, "12.3")),
        *((1234.5, "1,234"), (1.2e-5, "1.2e-05"), (3e7, "3e+07")),
        *((float("nan"), "nan"), (float("inf"), "inf"), (-0.25, "-0.250")),
    ],
)
def test_significant_digits(number, text):
    assert formats.significant(number) == text


def test_an_accuracy_is_a_percentage_and_its_differences_are_points():
    metric = formats.metric_of({})
    assert (metric.column, metric.axis) == ("Accuracy %", "accuracy [%]")
    assert (metric.text(0.861), metric.quantity(0.861)) == ("86.1", "86.1 %")
    texts = [metric.difference(x) for x in (0.013, -0.013, -0.0001)]
    assert texts == ["+1.3", "−1.3", "+0.0"]  # noqa: RUF001
    assert metric.deviation(0.013) == "1.3"


@pytest.mark.parametrize("score", [float("nan"), -float("inf")])
@pytest.mark.parametrize("metric", [Metric(), LOSS])
def test_a_score_that_is_not_finite_has_diverged(metric, score):
    texts = metric.text(score), metric.quantity(score), metric.phrase(score)
    assert texts == ("diverged",) * 3
    assert metric.difference(score) == metric.deviation(score) == formats.MISSING


def test_a_loss_is_recorded_as_minus_itself_and_shown_as_it_is():
    assert formats.metric_of({"metric": {"name": "loss", "percent": False}}) == LOSS
    assert (LOSS.column, LOSS.axis) == ("Loss", "loss")
    assert (LOSS.text(-0.3125), LOSS.quantity(-0.3125)) == ("0.312", "0.312")
    texts = [LOSS.difference(x) for x in (0.013, -0.013, 0.0)]
    assert texts == ["+0.0130", "−0.0130", "+0"]  # noqa: RUF001
    np.testing.assert_array_equal(LOSS.shown(np.array([-1.0, -2.0])), [1, 2])


def test_a_score_in_a_sentence_has_its_unit_or_the_name_of_its_kind():
    assert Metric().phrase(0.861) == "86.1 %"
    assert LOSS.phrase(-0.3125) == "a loss of 0.312"
