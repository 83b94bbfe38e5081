"""A round of any algorithm, as one jitted program over the cohort.

Dimension letters: `C` all clients, `c` the cohort, `S` local steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter
from potara_jax.clients.axis import over_clients
from potara_jax.clients.training import client_key
from potara_jax.data.federation import Ragged
from potara_jax.federated import conditions as conditions_
from potara_jax.federated import ledger
from potara_jax.federated import privacy as privacy_
from potara_jax.federated import wire as wire_
from potara_jax.federated.aggregation import all_finite, select
from potara_jax.federated.conditions import EVERYBODY, Conditions
from potara_jax.federated.interface import Algorithm, Shared
from potara_jax.federated.wire import AS_IT_IS, Wire

Array = jax.Array
Key = Array


class Progress(NamedTuple):
    """Where a federation stands: the server's and all clients' states (`[C, ...]`).

    `owed`: for each of the algorithm's turns, what compression has kept back of each
    client's uploads (`[C, ...]`); empty where it keeps nothing back.
    """

    server: Any
    states: Any
    owed: tuple = ()


class Report(NamedTuple):
    """What a round was: for each client of the cohort (`[c]`, or `[c, S]` for losses).

    `losses` are NaN where a step was not done. `finite` is false for a client whose
    update was left out because it was not, `arrived` for any that was left out.
    `bytes_down` and `bytes_up` are what it received and sent; `bytes_announced` (a
    scalar) is what each of all clients received.
    """

    cohort: Array
    losses: Array
    finite: Array
    arrived: Array
    bytes_down: Array
    bytes_up: Array
    bytes_announced: Array


RoundFn = Callable[[Shared, Progress, Ragged, Key, int], tuple[Progress, Report]]


def start(
    algorithm: Algorithm, adapters: Adapter, conditions: Conditions = EVERYBODY
) -> Progress:
    """The state before the first round, from every client's adapter `[C, ...]`.

    The server starts from the first client's.
    """
    clients = len(jax.tree.leaves(adapters)[0])
    states = jax.vmap(algorithm.init_client)(adapters, jnp.arange(clients))
    first = jax.tree.map(lambda x: x[0], adapters)
    server = algorithm.init(first, conditions_.size(conditions, clients))
    return jax.tree.map(jnp.copy, Progress(server, states))


def owing(
    algorithm: Algorithm, wire: Wire, shared: Shared, progress: Progress, examples
) -> Progress:
    """`progress` with nothing owed yet, as a wire whose compression has feedback needs.

    examples: all clients' (`Ragged`, `[C, N]`).
    """
    if not (wire.compression and wire.compression.feedback):
        return progress
    clients = len(examples.count)
    zeros = lambda x: jnp.zeros((clients, *x.shape), x.dtype)
    turns = algorithm.turns or (algorithm,)
    uploads = [upload_shape(turn, shared, progress, examples) for turn in turns]
    return progress._replace(owed=tuple(jax.tree.map(zeros, up) for up in uploads))


def upload_shape(
    algorithm: Algorithm, shared: Shared, progress: Progress, examples: Ragged
) -> Any:
    """Shapes and dtypes of what one client sends in a round."""

    def upload(shared, server, states, examples):
        shared = known(algorithm, shared, server, 0)
        state, own = jax.tree.map(lambda x: x[0], (states, examples))
        received = algorithm.broadcast(server, state)
        update = algorithm.client(shared, received, state, own, jax.random.key(0))
        return update.upload

    return jax.eval_shape(upload, shared, progress.server, progress.states, examples)


def stack(tree: Any, *, clients: int) -> Any:
    """A pytree repeated over a new leading client axis."""
    repeat = lambda x: jnp.tile(x[None], (clients, *[1] * x.ndim))
    return jax.tree.map(repeat, tree)


def make_round(
    algorithm: Algorithm,
    *,
    conditions: Conditions = EVERYBODY,
    wire: Wire = AS_IT_IS,
    chunk: int | None = None,
) -> RoundFn:
    """`round(shared, progress, examples, key, number) -> (progress, report)`, jitted.

    A cohort, drawn from the key and the round's number alone, trains from what it
    receives. A client's randomness depends on the key, its number and the round's.
    Uploads are weighted by the clients' numbers of examples (alike where the cohort is
    drawn by them, and under privacy). A client whose update or new state is not finite
    is left out, as is one that drops out: its weight is zero and it keeps its old
    state. `progress` is donated. Compiled once for every one of the algorithm's turns.

    Raises `ValueError` where a condition is out of range.
    """
    conditions_.check(conditions)
    programs = [
        jax.jit(_make_turn(turn, place, conditions, wire, chunk), donate_argnums=1)
        for place, turn in enumerate(algorithm.turns or (algorithm,))
    ]

    def run_round(shared, progress, examples, key, number):
        program = programs[int(number) % len(programs)]
        return program(shared, progress, examples, key, jnp.int32(number))

    run_round.programs = programs
    return run_round


def frozen(algorithm: Algorithm) -> Algorithm:
    """An algorithm whose server learns nothing: for clients that join later."""
    return algorithm._replace(
        aggregate=lambda server, uploads, weights: server,
        turns=tuple(frozen(turn) for turn in algorithm.turns),
    )


def _make_turn(algorithm, place, conditions, wire, chunk):
    def run_round(shared, progress, examples, key, number):
        clients = examples.count.shape[0]
        chex.assert_tree_shape_prefix(progress.states, (clients,))
        cohort = conditions_.draw_cohort(conditions, examples.count, key, number)
        pick = lambda tree: jax.tree.map(lambda x: x[cohort], tree)
        shared = known(algorithm, shared, progress.server, number)
        one = over_clients(
            _one_client(algorithm, conditions, wire),
            in_axes=(None, None, 0, 0, 0, 0, None),
            chunk=chunk,
        )
        owed = progress.owed[place] if progress.owed else ()
        mine = pick(progress.states), pick(owed), pick(examples), cohort
        result = one(shared, progress.server, *mine, key)
        if wire.privacy:
            keys = jax.vmap(lambda i: client_key(key, i, number))(cohort)
            result = _noised(wire.privacy, result, keys)
        server = _aggregate(
            algorithm, progress.server, result, _weights(conditions, wire, mine[2])
        )
        put = lambda all_, new: all_.at[cohort].set(new)
        states = jax.tree.map(put, progress.states, result.state)
        owed = jax.tree.map(put, owed, result.owed)
        owed = _replaced(progress.owed, place, owed)
        announced = ledger.payload_bytes(algorithm.announce(progress.server))
        report = Report(cohort, *result.report, jnp.asarray(announced, jnp.uint32))
        return Progress(server, states, owed), report

    return run_round


def known(algorithm: Algorithm, shared: Shared, server: Any, number) -> Shared:
    """What all clients have alike in a round: the base as it is by then, and so on."""
    base, common = algorithm.rebase(shared.base, server), algorithm.common(server)
    return shared._replace(base=base, round=number, common=common)


class _Result(NamedTuple):
    state: Any
    owed: Any
    upload: Any
    arrived: Array
    report: tuple


def _one_client(algorithm, conditions, wire):
    def run(shared, server, state, owed, examples, client, key):
        key = client_key(key, client, shared.round)
        received = algorithm.broadcast(server, state)
        examples = conditions_.slowed(conditions, examples, key)
        update = algorithm.client(shared, received, state, examples, key)
        way = jax.random.fold_in(key, 3)
        sent = wire_.send(wire, update.upload, received, owed, way)
        finite = _finite(update.losses, (sent.upload, update.state))
        arrived = finite & ~conditions_.lost(conditions, key)
        keep = lambda new, old: select(arrived, new, old)
        nothing = jax.tree.map(jnp.zeros_like, sent.upload)
        down, up = map(_counted, (received, sent.message))
        report = update.losses, finite, arrived, down, jnp.where(arrived, up, 0)
        return _Result(
            keep(update.state, state),
            keep(sent.owed, owed),
            keep(sent.upload, nothing),
            arrived,
            report,
        )

    return run


def _noised(privacy, result: _Result, keys) -> _Result:
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 4))(keys)
    return result._replace(
        upload=privacy_.noised(privacy, result.upload, result.arrived, keys)
    )


def _finite(losses, results) -> Array:
    """Whether a round came out well; losses of steps not done are NaN."""
    good = jnp.isfinite(losses).any() & ~jnp.isinf(losses).any()
    return good & all_finite(results)


def _counted(payload) -> Array:
    return jnp.asarray(ledger.payload_bytes(payload), jnp.uint32)


def _weights(conditions: Conditions, wire: Wire, examples: Ragged) -> Array:
    alike = conditions.by_examples or wire.privacy
    return jnp.ones(len(examples.count)) if alike else examples.count.astype(float)


def _aggregate(algorithm, server, result: _Result, weights: Array):
    weights = weights * result.arrived
    total = weights.sum()
    shares = weights / jnp.where(total > 0, total, 1)
    updated = algorithm.aggregate(server, result.upload, shares)
    return select(total > 0, updated, server)


def _replaced(values: tuple, place: int, value) -> tuple:
    return tuple(value if i == place else v for i, v in enumerate(values))


def personalised(
    algorithm: Algorithm, shared: Shared, progress: Progress, *, clients: int, number=0
) -> Any:
    """Every client's model after `number` rounds, stacked `[C, ...]`."""
    algorithm = algorithm.turn(int(number))
    shared = known(algorithm, shared, progress.server, number)

    def one(_, state):
        received = algorithm.broadcast(progress.server, state)
        return algorithm.personalise(shared, received, state)

    return jax.vmap(one)(jnp.arange(clients), progress.states)
