import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potara_jax.federated.aggregation import all_finite, select, weighted_mean
from tests.helpers_federated import assert_close, few_examples

rng = np.random.default_rng(0)
STACKED = {"dense": {"a": rng.normal(size=(4, 3, 2)), "b": rng.normal(size=(4, 2))}}


def test_weighted_mean_by_hand():
    stacked = {"x": jnp.array([[1.0, 2.0], [3.0, 6.0]]), "y": jnp.array([4.0, 8.0])}
    mean = weighted_mean(stacked, jnp.array([0.25, 0.75]))
    assert_close(mean, {"x": np.array([2.5, 5.0]), "y": np.array(7.0)})


@few_examples
@given(st.permutations(range(4)), st.lists(st.integers(1, 9), min_size=4, max_size=4))
def test_weighted_mean_is_the_same_for_any_order_of_clients(order, counts):
    weights = np.array(counts, np.float32) / sum(counts)
    order = np.array(order)
    moved = {name: leaf[order] for name, leaf in STACKED["dense"].items()}
    mean = weighted_mean(STACKED, jnp.asarray(weights))
    assert_close({"dense": weighted_mean(moved, jnp.asarray(weights[order]))}, mean)
    wanted = np.einsum("c,cdr->dr", weights, STACKED["dense"]["a"])
    assert_close(mean["dense"]["a"], wanted)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["first", "last"])
def test_one_number_makes_a_pytree_not_finite(value, place):
    tree = {"first": jnp.ones((2, 3)), "last": [jnp.zeros(4), jnp.arange(3)]}
    assert all_finite(tree)
    if place == "first":
        tree["first"] = tree["first"].at[1, 2].set(value)
    else:
        tree["last"][0] = tree["last"][0].at[3].set(value)
    assert not all_finite(tree)


def test_nothing_and_integers_are_finite():
    assert all_finite(())
    assert all_finite({"count": jnp.array([1, 2])})


def test_select_takes_one_of_two_pytrees():
    left, right = {"x": jnp.ones(2)}, {"x": jnp.full(2, np.nan)}
    np.testing.assert_array_equal(select(jnp.array(True), left, right)["x"], 1)
    assert np.all(np.isnan(select(jnp.array(False), left, right)["x"]))
