"""A round of any algorithm, as one jitted program over the cohort.

Dimension letters: `C` all clients, `c` the cohort, `S` local steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from potara_jax.adapters.lora import Adapter
from potara_jax.clients.axis import AT_ONCE, Layout, over_clients
from potara_jax.clients.fitting import jit_over_clients
from potara_jax.clients.mesh import by_client, everywhere, put, replicated
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


class Members(NamedTuple):
    """The clients of a round, stacked `[c, ...]`.

    Their numbers, their examples, their states, and what compression has kept back of
    their uploads of the turn whose round it is.
    """

    client: Array
    examples: Ragged
    states: Any
    owed: Any = ()


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
    layout: Layout = AT_ONCE,
) -> RoundFn:
    """`round(shared, progress, examples, key, number) -> (progress, report)`, jitted.

    A cohort, drawn from the key and the round's number alone, trains from what it
    receives. A client's randomness depends on the key, its number and the round's.
    Uploads are weighted by the clients' numbers of examples (alike where the cohort is
    drawn by them, and under privacy). A client whose update or new state is not finite
    is left out, as is one that drops out: its weight is zero and it keeps its old
    state. `progress` is donated. Compiled once for every one of the algorithm's turns.

    Over a mesh, the clients' states stay split over its devices where their number can
    be, and the server's state and the report are the same on all of them.

    Raises `ValueError` where a condition is out of range.
    """
    conditions_.check(conditions)
    programs = [
        jit_over_clients(
            partial(_make_turn, turn, place, conditions, wire),
            layout,
            lambda shared, progress, examples, *_: len(examples.count),
            donate_argnums=1,
        )
        for place, turn in enumerate(algorithm.turns or (algorithm,))
    ]

    def run_round(shared, progress, examples, key, number):
        program = programs[int(number) % len(programs)]
        args = _placed(layout.mesh, shared, progress, examples, key)
        return program(*args, np.int32(number))

    run_round.programs = programs
    return run_round


def frozen(algorithm: Algorithm) -> Algorithm:
    """An algorithm whose server learns nothing: for clients that join later."""
    return algorithm._replace(
        aggregate=lambda server, uploads, weights: server,
        turns=tuple(frozen(turn) for turn in algorithm.turns),
    )


def _make_turn(algorithm, place, conditions, wire, layout):
    """A round of all clients' states: the cohort's are taken out and put back."""
    turn = make_turn(algorithm, conditions=conditions, wire=wire, layout=layout)

    def run_round(shared, progress, examples, key, number):
        clients = examples.count.shape[0]
        chex.assert_tree_shape_prefix(progress.states, (clients,))
        cohort = conditions_.draw_cohort(conditions, examples.count, key, number)
        everybody = len(cohort) == clients
        pick = lambda tree: tree if everybody else jax.tree.map(_at(cohort), tree)
        owed = progress.owed[place] if progress.owed else ()
        members = Members(cohort, *map(pick, (examples, progress.states, owed)))
        server, members, report = turn(shared, progress.server, members, key, number)
        put = lambda old, new: new if everybody else _put(old, cohort, new)
        owed = replaced(progress.owed, place, put(owed, members.owed))
        progress = Progress(server, put(progress.states, members.states), owed)
        return _pinned(layout, clients, progress, report)

    return run_round


def make_turn(
    algorithm: Algorithm,
    *,
    conditions: Conditions = EVERYBODY,
    wire: Wire = AS_IT_IS,
    layout: Layout = AT_ONCE,
) -> Callable[..., tuple[Any, Members, Report]]:
    """`turn(shared, server, members, key, number) -> (server, members, report)`.

    A round of a cohort, given as `Members`, by one of an algorithm's turns: what
    `make_round` is made of, for states that are kept elsewhere. Not jitted.
    """
    one = over_clients(
        _one_client(algorithm, wire),
        in_axes=(None, None, 0, 0, 0),
        layout=layout,
        work=lambda shared, server, members, *_: members.examples.share,
    )

    def turn(shared, server, members, key, number):
        shared = known(algorithm, shared, server, number)
        keys = jax.vmap(lambda i: client_key(key, i, number))(members.client)
        slowed = lambda own, key: conditions_.slowed(conditions, own, key)
        members = members._replace(examples=jax.vmap(slowed)(members.examples, keys))
        lost = jax.vmap(lambda key: conditions_.lost(conditions, key))(keys)
        result = one(shared, server, members, keys, lost)
        if wire.privacy:
            result = _noised(wire.privacy, result, keys)
        weights = _weights(conditions, wire, members.examples)
        announced = ledger.payload_bytes(algorithm.announce(server))
        announced = jnp.asarray(announced, jnp.uint32)
        report = Report(members.client, *result.report, announced)
        members = members._replace(states=result.state, owed=result.owed)
        return _aggregate(algorithm, server, result, weights), members, report

    return turn


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


def _one_client(algorithm, wire):
    def run(shared, server, member, key, lost):
        _, examples, state, owed = member
        received = algorithm.broadcast(server, state)
        update = algorithm.client(shared, received, state, examples, key)
        way = jax.random.fold_in(key, 3)
        sent = wire_.send(wire, update.upload, received, owed, way)
        finite = _finite(update.losses, (sent.upload, update.state))
        arrived = finite & ~lost
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


def _at(cohort):
    return lambda x: x[cohort]


def _put(old, cohort, new):
    return jax.tree.map(lambda all_, own: all_.at[cohort].set(own), old, new)


def _pinned(layout: Layout, clients: int, progress: Progress, report: Report):
    """Where everything stays on a mesh: without it, states would lose their split."""
    if layout.mesh is None:
        return progress, report
    all_of_it, split = replicated(layout.mesh), by_client(layout.mesh, clients)
    stay = jax.lax.with_sharding_constraint
    server, own = stay(progress.server, all_of_it), stay(progress[1:], split)
    return Progress(server, *own), stay(report, all_of_it)


def _placed(mesh: Mesh | None, shared, progress, examples, key):
    """Everything where it stays on a mesh; what is there already is left as it is."""
    if mesh is None:
        return shared, progress, examples, key
    split = by_client(mesh, len(examples.count))
    own, examples = put((progress[1:], examples), split)
    alike = everywhere(mesh, (shared, progress.server, key))
    return alike[0], Progress(alike[1], *own), examples, alike[2]


def replaced(values: tuple, place: int, value) -> tuple:
    """A tuple with one of its values replaced; an empty one stays empty."""
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
