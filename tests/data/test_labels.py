import pytest

from potara_jax.data.labels import by_number


@pytest.mark.parametrize(
    "names",
    [
        ["-10", "-2", "0", "9", "10"],
        ["7", "9" * 18, "9" * 19, "a", "²"],
        ["1", "-", "--2", "1.5", "a1"],
    ],
)
def test_whole_numbers_come_first_by_value_then_all_others(names):
    assert sorted(reversed(names), key=by_number) == names
