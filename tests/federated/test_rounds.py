import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potara_jax import federated
from potara_jax.clients.axis import Layout
from potara_jax.federated import conditions, rounds
from potara_jax.federated.conditions import Conditions
from potara_jax.federated.interface import Algorithm, Update
from tests.helpers_federated import (
    ALGORITHMS,
    assert_close,
    assert_equal,
    differs,
    few_examples,
    make_round,
    poisoned,
    problem,
    run,
    start,
)

CLIENTS, COUNTS = 4, (4, 2, 1, 4)
FEDIT, LOCAL = ALGORITHMS["FedIT"], ALGORITHMS["local"]
WHOLE_FEDIT = ALGORITHMS["FedIT, whole batches"]
WHOLE_LOCAL = ALGORITHMS["local, whole batches"]
both = pytest.mark.parametrize("algorithm", [FEDIT, LOCAL], ids=["FedIT", "local"])
HALF = Conditions(cohort=0.5)
not_finite = pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])


def draw_cohort(key, number, clients, fraction):
    counts = jnp.ones(clients, jnp.int32)
    drawn = conditions.draw_cohort(Conditions(cohort=fraction), counts, key, number)
    return drawn.client


def keep(federation, clients):
    examples = jax.tree.map(lambda x: x[np.array(clients)], federation.examples)
    return federation._replace(examples=examples)


@functools.cache
def counting(spoil=None) -> Algorithm:
    """Clients send their number of examples and count their rounds.

    spoil: the part of its update that the client with one example makes NaN.
    """

    def client(shared, received, state, examples, key):
        bad = jnp.where(examples.count == 1, np.nan, 0.0)
        break_ = lambda name, value: value + bad if spoil == name else value
        count = examples.count + received["server"]
        return Update(
            break_("state", state + 1),
            {"sum": break_("upload", count)},
            break_("losses", jnp.zeros(2)),
            {"sum": jnp.float32(0)},
        )

    return Algorithm(
        name="counting",
        init=lambda adapter, size: jnp.float32(0),
        init_client=lambda adapter, client, key: jnp.float32(0),
        broadcast=lambda server, state: {
            "server": server,
            "half": jnp.zeros(3, jnp.bfloat16),
        },
        client=client,
        aggregate=lambda server, uploads, weights: weights @ uploads["sum"],
        personalise=lambda shared, received, state, examples: {},
        personal=False,
        sum_only=True,
    )


# --- What a round computes ------------------------------------------------------------


def test_two_rounds_by_hand():
    progress, report = run(counting(), problem(COUNTS), number=2)
    np.testing.assert_allclose(progress.server, 2 * (16 + 4 + 1 + 16) / 11, rtol=1e-6)
    np.testing.assert_array_equal(progress.states, [2, 2, 2, 2])
    np.testing.assert_array_equal(report.cohort, [0, 1, 2, 3])
    np.testing.assert_array_equal(report.losses, np.zeros((4, 2)))
    np.testing.assert_array_equal(report.finite, [True] * 4)
    np.testing.assert_array_equal(report.bytes_down, [4 + 3 * 2] * 4)
    np.testing.assert_array_equal(report.bytes_up, [4] * 4)


@few_examples
@given(st.permutations(range(CLIENTS)))
def test_round_is_the_same_for_any_order_of_clients(order):
    server = run(WHOLE_FEDIT, problem())[0].server
    assert_close(run(WHOLE_FEDIT, keep(problem(), order))[0].server, server)
    states = run(WHOLE_LOCAL, problem())[0].states
    moved = jax.tree.map(lambda x: x[np.array(order)], states)
    assert_close(run(WHOLE_LOCAL, keep(problem(), order))[0].states, moved)


@both
def test_round_is_a_function_of_the_key(algorithm):
    once, again = (run(algorithm, problem(), number=2) for _ in range(2))
    assert_equal(once, again)
    assert differs(once, run(algorithm, problem(), number=2, seed=1))


def test_rounds_draw_other_batches():
    shared, examples, _ = problem()
    first, second = (
        make_round(LOCAL)(
            shared, start(LOCAL, problem()), examples, jax.random.key(0), number
        )[1]
        for number in (0, 1)
    )
    assert differs(first.losses, second.losses)


# --- Cohorts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clients", "fraction", "size"),
    [(8, 0.5, 4), (8, 0.51, 5), (8, 0.01, 1), (3, 0.5, 2), (5, 1.0, 5), (100, 0.07, 7)],
)
def test_cohort_has_its_size_and_no_client_twice(clients, fraction, size):
    for number in range(5):
        cohort = np.asarray(draw_cohort(jax.random.key(0), number, clients, fraction))
        assert len(cohort) == size
        assert sorted(set(cohort.tolist())) == cohort.tolist()
        assert 0 <= cohort[0] <= cohort[-1] < clients


def test_cohort_is_a_function_of_the_key_and_the_round():
    def draw(seed, number):
        key = jax.random.key(seed)
        cohort = draw_cohort(key, number, 12, 0.5)
        return tuple(cohort.tolist())

    assert draw(0, 3) == draw(0, 3)
    assert len({draw(0, number) for number in range(6)}) > 3
    assert len({draw(seed, 0) for seed in range(6)}) > 3


def test_every_client_is_drawn_in_time():
    draw = lambda number: draw_cohort(jax.random.key(0), number, 6, 1 / 3)
    drawn = np.concatenate([draw(number) for number in range(30)])
    assert np.all(np.bincount(drawn, minlength=6) > 0)


def test_clients_outside_the_cohort_keep_their_state():
    progress, report = run(LOCAL, problem(), conditions=HALF)
    assert report.cohort.shape == (2,)
    assert report.losses.shape == (2, 3)
    before = start(LOCAL, problem()).states
    inside = np.isin(np.arange(CLIENTS), report.cohort)
    take = lambda tree, mask: jax.tree.map(lambda x: x[mask], tree)
    assert_equal(take(progress.states, ~inside), take(before, ~inside))
    moved = progress.states["dense"]["b"] != before["dense"]["b"]
    np.testing.assert_array_equal(np.any(moved, (1, 2)), inside)


def test_what_a_client_learns_does_not_depend_on_who_else_takes_part():
    cohorts = set()
    for seed in range(5):
        some, report = run(LOCAL, problem(), seed=seed, conditions=HALF)
        full, _ = run(LOCAL, problem(), seed=seed)
        pick = lambda tree, cohort=report.cohort: jax.tree.map(
            lambda x: x[cohort], tree
        )
        assert_close(pick(some.states), pick(full.states))
        cohorts.add(tuple(report.cohort.tolist()))
    assert len(cohorts - {(0, 1)}) > 1


def test_server_is_the_mean_over_the_cohort_alone():
    counts = np.array([5, 2, 1, 3])
    progress, report = run(counting(), problem(counts), conditions=HALF)
    own = counts[report.cohort]
    np.testing.assert_allclose(progress.server, (own**2).sum() / own.sum(), rtol=1e-6)
    inside = np.isin(np.arange(CLIENTS), report.cohort)
    np.testing.assert_array_equal(progress.states, inside)


def test_cohorts_are_reproducible_over_rounds():
    once, again = (run(LOCAL, problem(), number=3, conditions=HALF) for _ in range(2))
    assert_equal(once, again)


# --- Clients that diverge -------------------------------------------------------------


@not_finite
@pytest.mark.parametrize("client", [0, 2])
def test_client_that_is_not_finite_is_left_out_of_the_server(value, client):
    bad = poisoned(problem(), client, value)
    others = [c for c in range(CLIENTS) if c != client]
    progress, report = run(WHOLE_FEDIT, bad, number=2)
    without, _ = run(WHOLE_FEDIT, keep(problem(), others), number=2)
    np.testing.assert_array_equal(report.finite, np.arange(CLIENTS) != client)
    assert_close(progress.server, without.server)


@not_finite
def test_client_that_is_not_finite_keeps_its_state_and_others_are_unaffected(value):
    bad, _ = run(LOCAL, poisoned(problem(), 1, value), number=2)
    good, _ = run(LOCAL, problem(), number=2)
    before = start(LOCAL, problem())
    for client in range(CLIENTS):
        kept = before if client == 1 else good
        pick = lambda tree, c=client: jax.tree.map(lambda x: x[c], tree)
        assert_equal(pick(bad.states), pick(kept.states))


@pytest.mark.parametrize("part", ["state", "upload", "losses"])
def test_any_part_of_an_update_leaves_a_client_out(part):
    progress, report = run(counting(part), problem(COUNTS))
    np.testing.assert_array_equal(report.finite, [True, True, False, True])
    np.testing.assert_array_equal(progress.states, [1, 1, 0, 1])
    np.testing.assert_allclose(progress.server, (16 + 4 + 16) / 10, rtol=1e-6)


@both
def test_nothing_changes_where_no_client_is_finite(algorithm):
    bad = problem()
    for client in range(CLIENTS):
        bad = poisoned(bad, client, np.nan)
    progress, report = run(algorithm, bad, number=2)
    assert not np.any(report.finite)
    assert_equal(progress, start(algorithm, bad))


def test_client_that_recovers_is_taken_in_again():
    step, key = make_round(FEDIT), jax.random.key(0)
    shared, examples, _ = problem()
    bad = poisoned(problem(), 1, np.nan).shared
    progress, first = step(bad, start(FEDIT, problem()), examples, key, 0)
    _, second = step(shared, progress, examples, key, 1)
    np.testing.assert_array_equal(first.finite, [True, False, True, True])
    assert np.all(second.finite)


# --- Chunks, padding, compilation, donation -------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "chunk", "fraction"),
    [(FEDIT, 3, 1.0), (LOCAL, 1, 0.5)],
    ids=["FedIT", "local, a cohort"],
)
@pytest.mark.parametrize("value", [0.5, np.nan])
def test_chunk_changes_nothing(algorithm, chunk, fraction, value):
    options = {"number": 3, "conditions": Conditions(cohort=fraction)}
    clients = poisoned(problem(), 2, value)
    whole = run(algorithm, clients, **options)
    chunked = run(algorithm, clients, layout=Layout(chunk), **options)
    assert_close(chunked, whole)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 9])
def test_any_chunk_gives_the_same_server(chunk):
    progress, report = run(
        counting("upload"), problem(COUNTS), number=2, layout=Layout(chunk)
    )
    np.testing.assert_allclose(progress.server, 2 * (16 + 4 + 16) / 10, rtol=1e-6)
    np.testing.assert_array_equal(report.finite, [True, True, False, True])


@both
def test_padding_changes_nothing_to_the_bit(algorithm):
    exact = run(algorithm, problem(), number=2)
    padded = run(algorithm, problem(size=4 + 17), number=2)
    assert_equal(padded, exact)


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [(FEDIT, int), (counting(), int), (counting(), jnp.int32)],
    ids=["FedIT", "counting", "counting, numbers as arrays"],
)
def test_rounds_are_compiled_once(algorithm, kind):
    step = rounds.make_round(algorithm)
    progress = start(algorithm, problem())
    for number in range(4):
        shared, examples, _ = problem()
        progress, _ = step(shared, progress, examples, jax.random.key(0), kind(number))
    assert step.programs[0]._cache_size() == 1
    assert_equal(progress, run(algorithm, problem(), number=4)[0])


@both
def test_progress_is_donated_and_what_is_shared_is_not(algorithm):
    shared, examples, _ = problem()
    progress, key = start(algorithm, problem()), jax.random.key(0)
    make_round(algorithm)(shared, progress, examples, key, 0)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(progress))
    kept = jax.tree.leaves((shared, examples, key))
    assert not any(leaf.is_deleted() for leaf in kept)


@both
@pytest.mark.parametrize("clients", [1, 4])
def test_start_copies_so_that_the_adapters_survive(algorithm, clients):
    shared, examples, adapter = problem() if clients == CLIENTS else problem((7,))
    adapters = federated.stack(adapter, clients=clients)
    before = jax.tree.map(np.array, adapters)
    progress, key = (
        federated.start(algorithm, adapters, jax.random.key(0)),
        jax.random.key(0),
    )
    make_round(algorithm)(shared, progress, examples, key, 0)
    assert_equal(adapters, before)


def test_start_gives_every_client_its_own_adapter_and_the_server_the_first():
    adapters = {
        "dense": {"a": jnp.arange(24.0).reshape(4, 3, 2), "b": jnp.ones((4, 2))}
    }
    key = jax.random.key(0)
    begun = federated.start(LOCAL, adapters, key)
    assert_equal(begun, federated.Progress((), adapters))
    first = jax.tree.map(lambda x: x[0], adapters)
    begun = federated.start(FEDIT, adapters, key)
    assert_equal(begun, federated.Progress(first, ()))


def test_stack_repeats_over_a_new_axis():
    tree = {"x": jnp.arange(6).reshape(2, 3), "y": jnp.float32(2)}
    stacked = federated.stack(tree, clients=3)
    np.testing.assert_array_equal(stacked["x"], [np.arange(6).reshape(2, 3)] * 3)
    np.testing.assert_array_equal(stacked["y"], [2, 2, 2])
