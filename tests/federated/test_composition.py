"""Every algorithm with every wire and condition, against what must hold.

One client's round is sent through all wires at once, so that each algorithm is compiled
once for them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated import wire
from potara_jax.federated.aggregation import is_float
from potara_jax.federated.conditions import Conditions
from potara_jax.federated.interface import Shared, Size
from potara_jax.federated.privacy import Privacy
from potara_jax.federated.progress import known, personalised, upload_shape
from potara_jax.federated.registry import algorithms
from potara_jax.federated.rounds import make_round
from potara_jax.federated.wire import Wire
from tests.helpers_federated import (
    assert_close,
    differs,
    problem,
    run,
    start,
    task,
)

COUNTS = (4, 2, 1, 4)
KEY = jax.random.key(0)
train = Train(optax.sgd(0.1), steps=3, batch_size=4)
ALGORITHMS = {name: entry.make(task, train) for name, entry in algorithms().items()}
# Local training sends nothing, nor do private heads where all of the model is one.
SENDING = sorted({*ALGORITHMS} - {"local", "fedper", "fedrep"})
every = pytest.mark.parametrize("name", SENDING)

CLIP = 0.01
WAYS = {
    "wide clip": Wire(privacy=Privacy(1e6, 0.0)),
    "all entries": Wire(wire.top_k(1.0)),
    "bfloat16": Wire(wire.bfloat16()),
    "int8": Wire(wire.int8()),
    "clip": Wire(privacy=Privacy(CLIP, 0.0)),
    "most entries": Wire(wire.top_k(0.9)),
    "some entries": Wire(wire.top_k(0.3)),
}


def nothing_to_learn(base, adapter, batch):
    """A loss of zero, whatever the model."""
    return jnp.zeros(len(batch.labels))


@functools.cache
def a_round(name):
    """A client's update, and what arrives of it through every wire.

    Also its reference on other data, and its update where there is nothing to learn.
    """
    penalty = {"penalty": 0.0} if name == "hetlora" else {}
    make = lambda task: algorithms()[name].make(task, train, **penalty)
    idle = make(Task(nothing_to_learn, task.logits, task.judge, add=task.add))
    given, active = problem(COUNTS), make(task)
    other = given.shared.pool._replace(inputs=given.shared.pool.inputs[::-1])

    def updates(turn, idle, pool, server, state, number):
        shared = known(turn, Shared(given.shared.base, pool), server, number)
        examples = jax.tree.map(lambda x: x[0], given.examples)
        received = turn.broadcast(server, state)
        args = shared, received, state, examples, KEY
        return turn.client(*args), idle.client(*args)

    @functools.partial(jax.jit, static_argnums=0)
    def of_turn(place, server, state):
        turns = active.turn(place), idle.turn(place)
        args = server, state, place
        update, unmoved = updates(*turns, given.shared.pool, *args)
        elsewhere, _ = updates(*turns, other, *args)
        owed = jax.tree.map(jnp.zeros_like, update.upload)
        sent = {
            way: wire.send(how, update.upload, update.reference, owed, KEY).upload
            for way, how in WAYS.items()
        }
        return update, sent, elsewhere.reference, unmoved

    begin = start(active, given)
    state = jax.tree.map(lambda x: x[0], begin.states)
    places = range(len(active.turns) or 1)
    return [of_turn(place, begin.server, state) for place in places]


def floats(tree):
    """All floating-point numbers of a pytree, in one array."""
    return np.concatenate(
        [np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree) if is_float(x)]
    )


@every
def test_what_an_upload_is_relative_to_is_what_the_server_knows(name):
    """It has the upload's structure, and the client's data do not change it."""
    for update, _, elsewhere, _ in a_round(name):
        shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
        assert shapes(update.reference) == shapes(update.upload)
        np.testing.assert_array_equal(floats(elsewhere), floats(update.reference))
        assert np.any(floats(update.upload) != floats(update.reference))


@every
def test_a_client_that_learns_nothing_sends_no_change(name):
    for _, _, _, unmoved in a_round(name):
        assert_close(floats(unmoved.upload), floats(unmoved.reference), atol=1e-5)


@every
def test_wires_that_lose_nothing_change_rounding_only(name):
    for update, sent, _, _ in a_round(name):
        for way in ("wide clip", "all entries"):
            assert_close(floats(sent[way]), floats(update.upload), atol=1e-6)


@every
def test_wires_lose_no_more_of_the_change_than_they_must(name):
    for update, sent, _, _ in a_round(name):
        upload, reference = floats(update.upload), floats(update.reference)
        change, rounding = upload - reference, 1e-6
        lost = {way: np.abs(floats(each) - upload) for way, each in sent.items()}
        assert np.all(lost["bfloat16"] <= 2.0**-8 * np.abs(change) + rounding)
        assert lost["int8"].max() <= np.abs(change).max() / 127 + rounding
        kept = np.linalg.norm(floats(sent["clip"]) - reference)
        assert kept == pytest.approx(CLIP, rel=1e-3)
        sizes = {way: np.linalg.norm(each) for way, each in lost.items()}
        assert sizes["most entries"] < sizes["some entries"] < np.linalg.norm(change)


def test_what_cannot_be_made_up_for_later_is_refused():
    with pytest.raises(ValueError, match="FLoRA starts every round from other factors"):
        make_round(ALGORITHMS["flora"], wire=Wire(wire.top_k(0.5)))
    make_round(ALGORITHMS["flora"], wire=Wire(wire.int8()))


# --- Servers that lose clients -------------------------------------------------------

LOST = np.array([False, True, False, False, True])


def random_like(shape, clients, seed=0):
    rng = np.random.default_rng(seed)

    def draw(x):
        size = (clients, *x.shape)
        value = rng.normal(size=size) if is_float(x) else np.full(size, 2)
        return jnp.asarray(value, x.dtype)

    return jax.tree.map(draw, shape)


@every
def test_a_client_that_is_lost_is_as_if_it_had_not_been_drawn(name):
    given, counts = problem(COUNTS), np.array([4.0, 2, 1, 4, 3])
    for turn in ALGORITHMS[name].turns or (ALGORITHMS[name],):
        shape = upload_shape(turn, given.shared, start(turn, given), given.examples)
        uploads = random_like(shape, 5)
        inside = lambda x: jnp.where(LOST.reshape(-1, *[1] * (x.ndim - 1)), 0, x)
        weights = np.where(LOST, 0, counts) / counts[~LOST].sum()
        after = [
            turn.aggregate(turn.init(given.adapter, Size(6, len(w))), sent, w)
            for sent, w in (
                (jax.tree.map(inside, uploads), jnp.asarray(weights, jnp.float32)),
                (
                    jax.tree.map(lambda x: x[~LOST], uploads),
                    jnp.asarray(weights[~LOST], jnp.float32),
                ),
            )
        ]
        seen = [
            (turn.rebase(given.shared.base, server), received(turn, server, given))
            for server in after
        ]
        assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-5)


def received(turn, server, given):
    """What a client receives, and what it knows."""
    state = jax.tree.map(lambda x: x[0], start(turn, given).states)
    return turn.broadcast(server, state), turn.common(server)


# --- What clients keep against what the server has of it -----------------------------

HARD = Conditions(cohort=4, dropout=0.4, stragglers=0.5, newcomers=0.1)
MANY = (4, 2, 1, 4, 3, 2)  # of which five take part
SUMS = {
    "scaffold": lambda server, states: (
        jax.tree.map(lambda c: server["clients"] * c, server["c"]),
        states,
    ),
    "fedalt": lambda server, states: (server["sum"], states["summed"]),
}
LOSSY = {
    "as it is": wire.AS_IT_IS,
    "top_k": Wire(wire.top_k(0.2)),
    "int8, clip": Wire(wire.int8(), Privacy(0.05, 0.0)),
}


@pytest.mark.parametrize("way", LOSSY)
@pytest.mark.parametrize("name", SUMS)
def test_the_servers_sum_is_that_of_its_clients(name, way):
    given = problem(MANY)
    pool = given.shared.pool
    broken = pool.inputs.at[given.examples.index[2, 0]].set(jnp.nan)  # always left out
    shared = given.shared._replace(pool=pool._replace(inputs=broken))
    how = {"conditions": HARD, "wire": LOSSY[way], "number": 8}
    progress, report = run(ALGORITHMS[name], given._replace(shared=shared), **how)
    total, states = SUMS[name](progress.server, progress.states)
    assert not np.all(report.arrived)
    assert_close(total, jax.tree.map(lambda x: x[:5].sum(0), states), atol=1e-5)


def test_a_newcomer_hears_of_all_clients_that_took_part():
    """The others' mean is over five of five for it, and over four for any of them."""
    given, algorithm = problem(MANY), ALGORITHMS["fedalt"]
    progress, _ = run(algorithm, given, conditions=HARD, number=4)
    summed = progress.states["summed"]
    for client, others in ((5, [0, 1, 2, 3, 4]), (1, [0, 2, 3, 4])):
        state = jax.tree.map(lambda x, c=client: x[c], progress.states)
        rest = algorithm.broadcast(progress.server, state)
        mean = jax.tree.map(lambda x, o=others: x[np.array(o)].mean(0), summed)
        assert_close(rest, mean, rtol=1e-4, atol=1e-5)


# --- Clients that were never drawn ---------------------------------------------------


@pytest.mark.parametrize(
    "name", ["apfl", "ditto", "fdlora", "fedala", "feddpa_t", "pf2lora", "pfedme"]
)
def test_a_client_that_never_took_part_has_the_servers_model(name):
    """And not one that was mixed with factors that nobody has trained."""
    given, algorithm = problem(COUNTS), ALGORITHMS[name]
    alone = Conditions(cohort=1)
    step, progress = make_round(algorithm, conditions=alone), start(algorithm, given)
    never = {*range(4)}
    for number in range(2):
        args = given.shared, progress, given.examples, KEY, number
        progress, report = step(*args)
        never -= {*report.cohort.tolist()}
    models = personalised(algorithm, given.shared, progress, given.examples, number=2)
    logits = algorithm.predict(task).logits
    base, pool = given.shared.base, given.shared.pool
    server = progress.server["shared"] if name == "fdlora" else progress.server
    expected = task.logits(base, server, pool)
    assert len(never) >= 2 and differs(server, given.adapter)
    for client in never:
        model = jax.tree.map(lambda x, c=client: x[c], models)
        assert_close(logits(base, model, pool), expected, rtol=1e-4, atol=1e-5)


# --- Privacy divides by the cohort ---------------------------------------------------


def test_under_privacy_a_lost_client_counts_as_unchanged():
    """The server moves by the arrived changes over all that were drawn."""
    given, algorithm = problem((4, 4, 4, 4)), ALGORITHMS["fedit"]
    wide, half = Wire(privacy=Privacy(1e6, 0.0)), Conditions(dropout=0.5)
    before = start(algorithm, given).server
    private, report = run(algorithm, given, conditions=half, wire=wide)
    plain, _ = run(algorithm, given, conditions=half)
    share = report.arrived.mean()
    assert 0 < share < 1
    moved = lambda progress: jax.tree.map(jnp.subtract, progress.server, before)
    expected = jax.tree.map(lambda x: share * x, moved(plain))
    assert_close(moved(private), expected, rtol=1e-4, atol=1e-6)


def test_noise_does_not_tell_how_many_arrived():
    """With nobody left the server still takes the noise of a whole cohort."""
    given, algorithm = problem((4, 4, 4, 4)), ALGORITHMS["fedit"]
    noisy = Wire(privacy=Privacy(1.0, 1.0))
    bad = given.shared.pool._replace(inputs=jnp.nan * given.shared.pool.inputs)
    broken = given._replace(shared=given.shared._replace(pool=bad))
    before = start(algorithm, given).server
    after, report = run(algorithm, broken, wire=noisy)
    assert not np.any(report.arrived)
    moved = floats(after.server) - floats(before)
    assert 0.1 < np.std(moved) < 0.5  # noise of 1 in the sum, over four clients
