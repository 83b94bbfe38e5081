"""The largest class of every client, against counting by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.data import tokens
from potara_jax.data.federation import Batch, Federation, Ragged, Weighted
from potara_jax.data.text import Example
from potara_jax.evaluation.largest_class import largest_class
from potara_jax.experiment.problems import language


def federation(pool, train, test, weights=None) -> Federation:
    """Clients that train on and are tested on lists of indices."""
    longest = max(map(len, train))
    index = [[*each, *[0] * (longest - len(each))] for each in train]
    counts = jnp.asarray([len(each) for each in train])
    test = np.asarray(test)
    weights = np.full(test.shape, 1 / test.shape[1]) if weights is None else weights
    tests = Weighted(jnp.asarray(test), jnp.asarray(weights))
    held = Ragged(jnp.asarray(index), counts)
    return Federation(pool, held, held, tests, jnp.ones((len(train), 1)), counts)


def scored(clients: Federation):
    return largest_class(clients.pool, clients.train, clients.test)


def test_a_client_is_right_where_its_test_has_its_largest_class():
    pool = Batch(jnp.zeros((8, 2)), jnp.asarray([5, 5, 9, 9, 9, 2, 5, 2]))
    clients = federation(
        pool, [[0, 1, 2], [2, 3, 4, 5]], [[6, 7], [6, 3]], [[0.25, 0.75], [0.5, 0.5]]
    )
    scores = scored(clients)
    np.testing.assert_allclose(scores.accuracy, [0.25, 0.5])
    np.testing.assert_allclose(scores.balanced, [0.5, 0.5])  # one class of two
    # Of three classes: client 0 has (2: 0, 5: 2, 9: 1), client 1 (2: 1, 5: 0, 9: 3).
    by_hand = [
        -(0.25 * np.log(3 / 6) + 0.75 * np.log(1 / 6)),
        -0.5 * (np.log(1 / 7) + np.log(4 / 7)),
    ]
    np.testing.assert_allclose(scores.loss, by_hand, rtol=1e-6)


def test_padding_is_not_counted():
    pool = Batch(jnp.zeros((4, 1)), jnp.asarray([0, 1, 1, 0]))
    clients = federation(pool, [[1], [0, 1, 2]], [[2], [2]])
    np.testing.assert_allclose(scored(clients).accuracy, [1, 1])


def texts(*rows: tuple[str, tuple[str, ...], int]) -> Batch:
    examples = [Example(prompt, options, gold) for prompt, options, gold in rows]
    return language.batch(tokens.encode(examples, tokens.of_bytes(), context=16)[0])


def test_options_are_classes_of_their_tasks():
    """A client with two tasks answers each with the largest class of that task."""
    first, second = ("no", "yes"), ("a", "bb", "c")
    pool = texts(
        *(("p", first, 1), ("q", first, 1), ("r", first, 0), ("s", second, 2)),
        *(("t", first, 1), ("u", second, 2), ("v", second, 0)),
    )
    clients = federation(pool, [[0, 1, 2, 3]], [[4, 5, 6]])
    scores = scored(clients)
    np.testing.assert_allclose(scores.accuracy, [2 / 3])
    by_hand = -np.log([3 / 5, 2 / 4, 1 / 4]).mean()
    np.testing.assert_allclose(scores.loss, [by_hand], rtol=1e-6)


def test_an_example_without_a_choice_needs_the_commonest_answer():
    options = ("no", "yes")
    pool = texts(
        ("p", options, 0), ("q", ("x",), 0), ("r", ("x",), 0), ("s", ("y",), 0)
    )
    clients = federation(pool, [[1, 2, 0]], [[1, 3]])
    np.testing.assert_allclose(scored(clients).accuracy, [0.5])


@pytest.mark.parametrize(
    "pool",
    [
        Batch(jnp.zeros((4, 1)), jnp.zeros(4)),
        Batch(jnp.zeros((4, 1)), jnp.zeros((4, 2), jnp.int32)),
        Batch(jnp.zeros((4, 1)), {"mean": jnp.zeros(4, jnp.int32)}),
        texts(*[("p", ("x",), 0)] * 4),
    ],
)
def test_what_is_no_classification_has_no_largest_class(pool):
    assert scored(federation(pool, [[0]], [[1]])) is None
