"""What holds for every algorithm, on the linear model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from potara_jax import federated
from potara_jax.clients.axis import Layout
from potara_jax.clients.training import Train
from potara_jax.federated.conditions import Conditions
from potara_jax.federated.progress import known
from potara_jax.federated.registry import algorithms
from tests.helpers_federated import (
    assert_close,
    assert_equal,
    make_round,
    problem,
    run,
    start,
    task,
)

# One pool and the same largest client, so that rounds are compiled once for both.
COUNTS, FULL, POOL = (4, 2, 1, 4), (4, 4, 4, 4), 16
train = Train(optax.sgd(0.1), steps=3, batch_size=4)
ALGORITHMS = {name: entry.make(task, train) for name, entry in algorithms().items()}
every = pytest.mark.parametrize("name", ALGORITHMS)
# Clients draw factors, gates or samples by their numbers.
DRAWS_BY_CLIENT = {"fedala", "fedalt", "flora", "pf2lora"}
# States, several ranks, a changing base, announcements, turns, two adapters.
of_every_kind = pytest.mark.parametrize(
    "name",
    ["fedsa", "scaffold", "hetlora", "flora", "fedalt", "rolora", "feddpa_t", "fedala"],
)


def models(name, given, progress, number=4):
    algorithm = ALGORITHMS[name]
    shared = known(algorithm.turn(number), given.shared, progress.server, number)
    found = federated.personalised(
        algorithm, given.shared, progress, given.examples, number=number
    )
    predict = algorithm.predict(task).logits
    return jax.vmap(lambda model: predict(shared.base, model, shared.pool))(found)


def ordered(given, order):
    examples = jax.tree.map(lambda x: x[np.array(order)], given.examples)
    return given._replace(examples=examples)


@every
def test_every_algorithm_is_listed_with_a_summary(name):
    entry = algorithms()[name]
    assert entry.summary
    dated = "20" in entry.reference
    assert name == "local" or dated, "name the publication and its year as reference"


@every
def test_structures_are_fixed_and_a_ragged_federation_is_finite(name):
    before = start(ALGORITHMS[name], problem(COUNTS, pool=POOL))
    shape = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    progress, report = run(ALGORITHMS[name], problem(COUNTS, pool=POOL), number=4)
    assert shape(progress) == shape(before)
    assert np.all(report.finite) and np.all(report.arrived)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(progress))
    assert np.all(np.isfinite(models(name, problem(COUNTS, pool=POOL), progress)))


@every
def test_clients_learn(name):
    given = problem(FULL, pool=POOL)
    _, first = run(ALGORITHMS[name], given)
    _, last = run(ALGORITHMS[name], given, number=30)
    losses = lambda report: np.nanmean(report.losses[:, -1])
    assert losses(last) < losses(first)


@pytest.mark.parametrize("name", sorted({*ALGORITHMS} - DRAWS_BY_CLIENT))
def test_order_of_clients_changes_nothing(name):
    order = [0, 3, 1, 2]
    given = problem(COUNTS, pool=POOL)
    moved = ordered(given, order)
    expected = models(name, given, run(ALGORITHMS[name], given, number=4)[0])
    found = models(name, moved, run(ALGORITHMS[name], moved, number=4)[0])
    assert_close(found, expected[np.array(order)], rtol=1e-3, atol=1e-4)


@of_every_kind
def test_padding_changes_nothing_to_the_bit(name):
    exact, _ = run(ALGORITHMS[name], problem(COUNTS, pool=POOL), number=3)
    wide = problem(COUNTS, pool=POOL, size=9)
    own = Layout(4)  # rounds of their own: the others' are compiled once
    padded, _ = run(ALGORITHMS[name], wide, number=3, layout=own)
    assert_equal(padded, exact)


@of_every_kind
def test_chunks_change_nothing(name):
    whole, _ = run(ALGORITHMS[name], problem(COUNTS, pool=POOL), number=3)
    chunked, _ = run(
        ALGORITHMS[name], problem(COUNTS, pool=POOL), number=3, layout=Layout(2)
    )
    assert_close(chunked, whole, rtol=1e-3, atol=1e-4)


@every
def test_one_compilation_for_each_turn(name):
    algorithm, given = ALGORITHMS[name], problem(COUNTS, pool=POOL)
    step, progress = make_round(algorithm), start(algorithm, given)
    for number in range(4):
        key = jax.random.key(0)
        progress, _ = step(given.shared, progress, given.examples, key, number)
    assert [program._cache_size() for program in step.programs] == [1] * len(
        step.programs
    )


@every
def test_rounds_go_on_from_stored_progress(name):
    algorithm, given = ALGORITHMS[name], problem(COUNTS, pool=POOL)
    step, key = make_round(algorithm), jax.random.key(0)
    progress = start(algorithm, given)
    for number in range(4):
        if number == 2:  # as a checkpoint has it: bytes of arrays, and no more
            leaves, structure = jax.tree.flatten(progress)
            stored = [np.array(x).tobytes() for x in leaves]
            read = [
                jnp.asarray(np.frombuffer(raw, x.dtype).reshape(x.shape))
                for raw, x in zip(stored, leaves, strict=True)
            ]
            progress = jax.tree.unflatten(structure, read)
        progress, _ = step(given.shared, progress, given.examples, key, number)
    assert_equal(progress, run(algorithm, given, number=4)[0])


@every
def test_a_client_that_diverges_is_left_out(name):
    given = problem(COUNTS, pool=POOL)
    pool = given.shared.pool
    broken = pool.inputs.at[given.examples.index[1, 0]].set(jnp.nan)
    shared = given.shared._replace(pool=pool._replace(inputs=broken))
    progress, report = run(ALGORITHMS[name], given._replace(shared=shared), number=3)
    np.testing.assert_array_equal(report.finite, [True, False, True, True])
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(progress))


@of_every_kind
def test_all_conditions_at_once(name):
    hard = Conditions(
        cohort=2, by_examples=True, dropout=0.3, stragglers=0.5, newcomers=0.25
    )
    given = problem((4, 2, 1, 4, 3))
    progress, report = run(ALGORITHMS[name], given, number=5, conditions=hard)
    assert report.cohort.shape == (2,) and report.cohort.max() < 3
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(progress))
    assert np.all(np.isfinite(models(name, given, progress, 5)))
