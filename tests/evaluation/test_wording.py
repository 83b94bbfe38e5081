import pytest
from hypothesis import given
from hypothesis import strategies as st

from potara_jax.evaluation import wording
from potara_jax.evaluation.wording import exact_match, f1, rouge_1


@pytest.mark.parametrize(
    ("written", "right", "expected"),
    [
        ("The Eiffel Tower!", "eiffel tower", (1, 1, 4 / 5)),
        ("in Paris, France", "Paris", (0, 1 / 2, 1 / 2)),
        ("the cat the cat", "the cat", (0, 2 / 3, 2 / 3)),
        ("", "Paris", (0, 0, 0)),
        (")]", ")]", (1, 1, 1)),
        (")", ")]", (0, 0, 0)),
        ("Berlin", "Paris", (0, 0, 0)),
    ],
)
def test_by_hand(written, right, expected):
    scores = [metric(written, right) for metric in wording.METRICS.values()]
    assert scores == pytest.approx(expected)


@given(st.text(max_size=20), st.text(max_size=20))
def test_metrics_are_symmetric_shares_and_one_for_equal_answers(one, two):
    for metric in (exact_match, f1, rouge_1):
        assert 0 <= metric(one, two) == metric(two, one) <= 1
        assert metric(one, one) == 1
    assert exact_match(one, two) <= f1(one, two)
