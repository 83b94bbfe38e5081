"""What algorithms declare of themselves is what they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from potara_jax import federated
from potara_jax.clients.training import Train
from potara_jax.federated.aggregation import is_float
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.algorithms.fedopt import with_server_optimizer
from potara_jax.federated.algorithms.flexlora import flexlora
from potara_jax.federated.progress import known, upload_shape
from potara_jax.federated.registry import algorithms
from tests.helpers_federated import problem, run, start, task

COUNTS = (4, 2, 1, 4)
train = Train(optax.adamw(0.05), steps=3, batch_size=4)
FEDIT = fedit(task, train)
ALGORITHMS = {name: entry.make(task, train) for name, entry in algorithms().items()}


def check_declarations(algorithm):
    given = problem(COUNTS)
    for turn in algorithm.turns or (algorithm,):
        assert type(turn.sum_only) is bool
        assert turn.sum_only == takes_sums_only(turn, given)
        assert turn.changes_base == base_depends_on_server(turn, given)
    assert algorithm.personal == models_differ(algorithm, given)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_what_it_declares(name):
    check_declarations(ALGORITHMS[name])


def test_all_turns_declare_the_same():
    for algorithm in ALGORITHMS.values():
        of = lambda one: (one.personal, one.sum_only, one.changes_base)
        assert {of(turn) for turn in algorithm.turns} <= {of(algorithm)}


# --- The proof -----------------------------------------------------------------------


def takes_sums_only(turn, given, *, seeds=3):
    """Whether uploads with equal sums, and any states, make no difference."""
    draws = [(seed, count) for seed in range(seeds) for count in (3, 4, 5)]
    equal = (equal_sums_aggregate_equally(turn, given, *draw) for draw in draws)
    return all(equal) and broadcast_ignores_states(turn, given, seeds)


def equal_sums_aggregate_equally(turn, given, seed, count):
    rng, begin = np.random.default_rng(seed), start(turn, given)
    shape = upload_shape(turn, given.shared, begin, given.examples)
    server = positive(begin.server, rng)
    for weights in weights_of(count, rng):
        uploads = heavy_tailed(shape, weights, rng)
        others = of_equal_sums(uploads, weights, rng)
        one, other = (
            turn.aggregate(server, each, jnp.asarray(weights, jnp.float32))
            for each in (uploads, others)
        )
        largest = [np.abs(x).max() for x in jax.tree.leaves((uploads, others))]
        if not close(one, other, scale=max(largest, default=1.0)):
            return False
    return True


def weights_of(count, rng):
    """Equal, unequal, and equal but for a client that is left out."""
    unequal = rng.uniform(0.2, 1, count)
    left_out = np.append(np.ones(count - 1), 0)
    cases = [np.ones(count), unequal, *([left_out] if count > 3 else [])]
    return [case / case.sum() for case in cases]


def heavy_tailed(shape, weights, rng):
    """Uploads; zeros of a client that is left out, as a round has it."""
    inside = weights > 0

    def draw(x):
        size = (len(weights), *x.shape)
        value = rng.standard_t(2, size) if is_float(x) else rng.integers(1, 3, size)
        masked = value * inside.reshape(-1, *[1] * len(x.shape))
        return jnp.asarray(masked, x.dtype)

    return jax.tree.map(draw, shape)


def of_equal_sums(uploads, weights, rng):
    """Other uploads of the same weighted sum and the same plain sum.

    Integers, which no wire clips or adds noise to, are drawn anew.
    """
    sums = np.stack([weights, weights > 0])
    away = np.eye(len(weights)) - np.linalg.pinv(sums) @ sums

    def move(x, other):
        change = np.tensordot(away, np.asarray(other, np.float64), 1)
        moved = jnp.asarray(np.asarray(x, np.float64) + change, x.dtype)
        return moved if is_float(x) else other

    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), uploads)
    return jax.tree.map(move, uploads, heavy_tailed(one, weights, rng))


def broadcast_ignores_states(turn, given, seeds):
    begin, rng = start(turn, given), np.random.default_rng(0)
    first = jax.tree.map(lambda x: x[0], begin.states)
    server = positive(begin.server, rng)
    sent = [turn.broadcast(server, positive(first, rng)) for _ in range(1 + seeds)]
    return all(close(sent[0], other) for other in sent[1:])


def models_differ(algorithm, given, number=3):
    """Whether clients differ after some rounds, whatever numbers they keep."""
    progress, _ = run(algorithm, given, number=number)
    rng = np.random.default_rng(0)
    random = jax.tree.map(
        lambda x: positive(x, rng) if is_float(x) else x, progress.states
    )
    models = federated.personalised(
        algorithm,
        given.shared,
        progress._replace(states=random),
        given.examples,
        number=number,
    )
    each = [jax.tree.map(lambda x, c=c: x[c], models) for c in range(len(COUNTS))]
    return not all(close(each[0], other) for other in each[1:])


def base_depends_on_server(turn, given):
    server = positive(start(turn, given).server, np.random.default_rng(0))
    base = given.shared.base
    return not close(known(turn, given.shared, server, 0).base, base)


def positive(tree, rng):
    """Numbers in [0, 1), since second moments are not negative; integers are 1 or 2."""

    def draw(x):
        value = rng.random(x.shape) if is_float(x) else rng.integers(1, 3, x.shape)
        return jnp.asarray(value, x.dtype)

    return jax.tree.map(draw, tree)


def close(one, other, *, scale=1.0):
    near = lambda x, y: np.allclose(x, y, rtol=1e-3, atol=1e-5 + 1e-5 * scale)
    return all(jax.tree.leaves(jax.tree.map(near, one, other)))


# --- What the proof must refute ------------------------------------------------------


def median(server, uploads, weights):
    return jax.tree.map(lambda x: jnp.median(x, 0), uploads)


def median_of_those_inside(server, uploads, weights):
    absent = lambda x: (weights == 0).reshape(-1, *[1] * (x.ndim - 1))
    return jax.tree.map(
        lambda x: jnp.nanmedian(jnp.where(absent(x), jnp.nan, x), 0), uploads
    )


def trimmed_mean(server, uploads, weights):
    return jax.tree.map(lambda x: jnp.sort(x, 0)[1:-1].mean(0), uploads)


def mean_of_clipped(server, uploads, weights):
    """Differs from the mean only where a number is large."""
    clipped = jax.tree.map(lambda x: jnp.clip(x, -3, 3), uploads)
    return federated.weighted_mean(clipped, weights)


def largest_weight(server, uploads, weights):
    return jax.tree.map(lambda x: x[jnp.argmax(weights)], uploads)


@pytest.mark.parametrize(
    "aggregate",
    [median, median_of_those_inside, trimmed_mean, mean_of_clipped, largest_weight],
)
def test_what_is_not_a_sum_may_not_be_declared_one(aggregate):
    honest = FEDIT._replace(aggregate=aggregate, sum_only=False)
    check_declarations(honest)
    with pytest.raises(AssertionError):
        check_declarations(honest._replace(sum_only=True))


def test_a_broadcast_of_the_state_is_no_sum():
    algorithm = FEDIT._replace(
        init_client=lambda adapter, client, key: jnp.float32(0),
        broadcast=lambda server, state: jax.tree.map(lambda x: x + state, server),
        personal=True,
    )
    check_declarations(algorithm._replace(sum_only=False))
    with pytest.raises(AssertionError):
        check_declarations(algorithm)


def test_uploaded_integers_are_no_sum():
    def client(shared, received, state, examples, key):
        update = FEDIT.client(shared, received, state, examples, key)
        return update._replace(upload=(update.upload, examples.count))

    def aggregate(server, uploads, weights):
        mean = federated.weighted_mean(uploads[0], weights)
        return jax.tree.map(lambda x: x + uploads[1].sum(), mean)

    algorithm = FEDIT._replace(client=client, aggregate=aggregate)
    check_declarations(algorithm._replace(sum_only=False))
    with pytest.raises(AssertionError):
        check_declarations(algorithm)


@pytest.mark.parametrize("name", ["fedit", "fedsa", "ffa"])
def test_a_server_optimizer_changes_no_declaration(name):
    check_declarations(with_server_optimizer(ALGORITHMS[name], optax.sgd(0.5)))


def test_flexlora_is_personal_where_ranks_differ():
    check_declarations(flexlora(task, train, ranks=(2, 1)))
    assert flexlora(task, train, ranks=(2, 1)).personal
    assert not flexlora(task, train).personal


@pytest.mark.parametrize("name", ["personal", "changes_base"])
def test_other_declarations_are_refuted_too(name):
    wrong = FEDIT._replace(**{name: not getattr(FEDIT, name)})
    with pytest.raises(AssertionError):
        check_declarations(wrong)
