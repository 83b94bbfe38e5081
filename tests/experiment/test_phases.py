import numpy as np
import pytest

from potara_jax.experiment import phases
from potara_jax.experiment.phases import Budget, Phase

CLIENTS = 2


def due(rounds, *, budget, final=0, marks=()):
    """The slots that each round fills, where one takes 30 bytes and 2 steps."""
    phase = Phase("any", None, None, rounds, marks=marks, budget=budget)
    line = {"bytes_up": 10, "bytes_down": 20, "steps": 2 * CLIENTS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "_received", lambda *_: np.full(CLIENTS, final // 2))
        found = [
            phases._due(phase, [line] * number, None, CLIENTS)
            for number in range(1, rounds + 1)
        ]
    return {i + 1: slots for i, slots in enumerate(found) if slots}


def test_marks_alone_without_a_budget():
    assert due(4, budget=None, marks=(1, 4)) == {1: [1], 4: [4]}


@pytest.mark.parametrize(
    ("budget", "final", "expected"),
    [
        (Budget(100, 5), 0, {3: [-1], 2: [-2]}),
        (Budget(100, 5), 20, {2: [-1, -2]}),  # the final models must fit too
        (Budget(90, 4), 0, {3: [-1], 2: [-2]}),  # a budget may be spent to the end
        (Budget(20, 1), 0, {}),  # the first round is too much
        (Budget(1000, 1000), 0, {}),  # it lasts longer than the rounds
    ],
)
def test_the_last_rounds_within_a_budget_are_looked_at(budget, final, expected):
    assert due(5, budget=budget, final=final) == expected


def test_a_mark_may_be_the_last_within_a_budget():
    assert due(5, budget=Budget(100, 5), marks=(2, 3)) == {2: [2, -2], 3: [3, -1]}
