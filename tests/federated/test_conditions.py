"""Who is drawn, with what chance and what weight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potara_jax.federated.conditions import Conditions, draw_cohort, inclusion
from tests.helpers_federated import few_examples

KEY = jax.random.key(0)
# One client has a quarter of all examples, another a tenth.
COUNTS = np.array([250, 100, *[60] * 5, *[35] * 10], np.float32)
DRAWS = 4000


@functools.cache
def drawn(cohort, by_examples):
    """Which clients are in which round, and their shares in the server's sum."""
    conditions = Conditions(cohort=cohort, by_examples=by_examples)

    def one(number):
        client, weight = draw_cohort(conditions, jnp.asarray(COUNTS), KEY, number)
        return client, weight / weight.sum()

    client, share = map(np.asarray, jax.jit(jax.vmap(one))(np.arange(DRAWS)))
    inside = np.zeros((DRAWS, len(COUNTS)))
    inside[np.arange(DRAWS)[:, None], client] = 1
    shares = np.zeros_like(inside)
    shares[np.arange(DRAWS)[:, None], client] = share
    return inside, shares


@pytest.mark.parametrize("cohort", [1, 3, 8, 16, 17])
def test_cohorts_by_examples_are_unbiased(cohort):
    """The expected share of a client is that of its examples, whatever the cohort."""
    inside, shares = drawn(cohort, by_examples=True)
    np.testing.assert_array_equal(inside.sum(1), cohort)
    error = np.abs(shares.mean(0) - COUNTS / COUNTS.sum())
    assert np.all(error <= 4.5 * shares.std(0) / np.sqrt(DRAWS) + 1e-6)


@pytest.mark.parametrize("cohort", [3, 8, 16])
def test_clients_are_drawn_with_their_chances(cohort):
    inside, _ = drawn(cohort, by_examples=True)
    chance = np.asarray(inclusion(jnp.asarray(COUNTS), cohort))
    error = np.abs(inside.mean(0) - chance)
    assert np.all(error <= 4.5 * np.sqrt(chance * (1 - chance) / DRAWS) + 1e-6)


def test_cohorts_drawn_uniformly_have_every_client_alike():
    inside, shares = drawn(8, by_examples=False)
    error = np.abs(inside.mean(0) - 8 / len(COUNTS))
    assert error.max() < 4.5 * 0.5 / np.sqrt(DRAWS)
    ratio = shares / (inside * COUNTS).sum(1, keepdims=True) ** -1
    np.testing.assert_allclose(ratio[inside > 0], (inside * COUNTS)[inside > 0], 1e-5)


def test_chances_by_hand():
    """Two of 6, 2, 1, 1: the first is always in, the others share one place."""
    chance = inclusion(jnp.array([2.0, 1, 6, 1]), 2)
    np.testing.assert_allclose(chance, [0.5, 0.25, 1, 0.25], rtol=1e-6)


@few_examples
@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=40), st.data())
def test_chances_are_a_distribution_over_the_places(counts, data):
    cohort = data.draw(st.integers(1, len(counts) - 1))
    chance = np.asarray(inclusion(jnp.asarray(counts, jnp.float32), cohort))
    assert np.all((chance > 0) & (chance <= 1))
    assert chance.sum() == pytest.approx(cohort, rel=1e-4)
    below = chance < 1
    ratio = chance[below] / np.asarray(counts)[below]
    np.testing.assert_allclose(ratio, ratio[:1].repeat(len(ratio)), rtol=1e-3)


@few_examples
@given(st.lists(st.integers(1, 10**5), min_size=2, max_size=30), st.data())
def test_a_cohort_has_no_client_twice_whatever_the_counts(counts, data):
    cohort = data.draw(st.integers(1, len(counts)))
    conditions = Conditions(cohort=cohort, by_examples=True)
    number = data.draw(st.integers(0, 10**6))
    client, weight = draw_cohort(conditions, jnp.asarray(counts), KEY, number)
    assert len(set(np.asarray(client).tolist())) == cohort
    assert np.all(np.diff(client) > 0)
    assert float(weight.sum()) == pytest.approx(sum(counts), rel=1e-3)
