"""A round of one cohort: its clients train, and the server aggregates what arrives.

Dimension letters: `c` the cohort, `S` local steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.clients.axis import AT_ONCE, Layout, over_clients
from potara_jax.clients.training import client_key
from potara_jax.data.federation import Ragged
from potara_jax.federated import conditions as conditions_
from potara_jax.federated import ledger
from potara_jax.federated import privacy as privacy_
from potara_jax.federated import wire as wire_
from potara_jax.federated.aggregation import all_finite, select
from potara_jax.federated.conditions import EVERYBODY, Conditions
from potara_jax.federated.interface import Algorithm, Server, Shared
from potara_jax.federated.privacy import Privacy
from potara_jax.federated.progress import known
from potara_jax.federated.wire import AS_IT_IS, Wire

Array = jax.Array


class Members(NamedTuple):
    """The clients of a round, stacked `[c, ...]`.

    Their numbers, their examples, their states, and what compression has kept back of
    their uploads of this round's turn.
    """

    client: Array
    examples: Ragged
    states: Any
    owed: Any = ()


class Report(NamedTuple):
    """What happened in a round, for each client of the cohort.

    `cohort` `[c]` are the clients. `losses` `[c, S]` are NaN for steps that were not
    done. `finite` `[c]` is false for a client that was left out because its update was
    not finite, `arrived` `[c]` is false for any that was left out. `bytes_down` and
    `bytes_up` `[c]` are what a client received and sent; `bytes_announced` (a scalar)
    is what each of all clients received.
    """

    cohort: Array
    losses: Array
    finite: Array
    arrived: Array
    bytes_down: Array
    bytes_up: Array
    bytes_announced: Array


CohortRound = Callable[..., tuple[Server, Members, Report]]


def make_cohort_round(
    turn: Algorithm,
    *,
    conditions: Conditions = EVERYBODY,
    wire: Wire = AS_IT_IS,
    layout: Layout = AT_ONCE,
) -> CohortRound:
    """`run(shared, server, members, key, number) -> (server, members, report)`.

    A round of a cohort by one of an algorithm's turns, wherever the clients' states are
    kept. Not jitted.
    """
    one = over_clients(
        _one_client(turn, wire),
        in_axes=(None, None, 0, 0, 0),
        layout=layout,
        work=lambda shared, server, members, *_: members.examples.share,
    )

    def run(
        shared: Shared, server: Server, members: Members, key: Array, number: Array
    ) -> tuple[Server, Members, Report]:
        shared = known(turn, shared, server, number)
        keys = jax.vmap(lambda i: client_key(key, i, number))(members.client)
        slowed = lambda examples, key: conditions_.slowed(conditions, examples, key)
        members = members._replace(examples=jax.vmap(slowed)(members.examples, keys))
        lost = jax.vmap(lambda key: conditions_.lost(conditions, key))(keys)
        result: _Result = one(shared, server, members, keys, lost)
        if wire.privacy:
            result = _noised(wire.privacy, result, keys)
        weights = _weights(conditions, wire, members.examples)
        announced = _counted(turn.announce(server))
        report = Report(members.client, *result.report, announced)
        members = members._replace(states=result.state, owed=result.owed)
        return _aggregate(turn, server, result, weights), members, report

    return run


class _Result(NamedTuple):
    state: Any
    owed: Any
    upload: Any
    arrived: Array
    report: tuple[Array, Array, Array, Array, Array]


def _one_client(turn: Algorithm, wire: Wire) -> Callable[..., _Result]:
    def run(
        shared: Shared, server: Server, member: Members, key: Array, lost: Array
    ) -> _Result:
        _, examples, state, owed = member
        received = turn.broadcast(server, state)
        update = turn.client(shared, received, state, examples, key)
        wire_key = jax.random.fold_in(key, 3)
        sent = wire_.send(wire, update.upload, received, owed, wire_key)
        finite = _finite(update.losses, (sent.upload, update.state))
        arrived = finite & ~lost
        keep = lambda new, old: select(arrived, new, old)
        nothing = jax.tree.map(jnp.zeros_like, sent.upload)
        down, up = map(_counted, (received, sent.message))
        return _Result(
            keep(update.state, state),
            keep(sent.owed, owed),
            keep(sent.upload, nothing),
            arrived,
            (update.losses, finite, arrived, down, jnp.where(arrived, up, 0)),
        )

    return run


def _noised(privacy: Privacy, result: _Result, keys: Array) -> _Result:
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 4))(keys)
    upload = privacy_.noised(privacy, result.upload, result.arrived, keys)
    return result._replace(upload=upload)


def _finite(losses: Array, results: Any) -> Array:
    """Whether all results are finite; losses of steps that were not done are NaN."""
    good = jnp.isfinite(losses).any() & ~jnp.isinf(losses).any()
    return good & all_finite(results)


def _counted(payload: Any) -> Array:
    return jnp.asarray(ledger.payload_bytes(payload), jnp.uint32)


def _weights(conditions: Conditions, wire: Wire, examples: Ragged) -> Array:
    equal = conditions.by_examples or wire.privacy
    return jnp.ones(len(examples.count)) if equal else examples.count.astype(float)


def _aggregate(
    turn: Algorithm, server: Server, result: _Result, weights: Array
) -> Server:
    weights = weights * result.arrived
    total = weights.sum()
    shares = weights / jnp.where(total > 0, total, 1)
    updated = turn.aggregate(server, result.upload, shares)
    return select(total > 0, updated, server)
