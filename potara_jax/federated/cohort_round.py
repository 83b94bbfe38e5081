"""A round of one cohort: its clients train, and the server aggregates what arrives.

Dimension letters: `c` the cohort, `S` local steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
from potara_jax.federated.progress import known
from potara_jax.federated.wire import AS_IT_IS, Wire
from potara_jax.keys import subkey

Array = jax.Array


class Members(NamedTuple):
    """The clients of a round, stacked `[c, ...]`.

    Their numbers, their weights in the server's sum, their examples, their states, and
    what compression has kept back of their uploads of this round's turn.
    """

    client: Array
    weight: Array
    examples: Ragged
    states: Any
    owed: Any = ()


class Report(NamedTuple):
    """What happened in a round, for each client of the cohort.

    Attributes:
      cohort: the clients, `[c]`.
      losses: of their steps, `[c, S]`; NaN for steps that were not done.
      finite: `[c]`, false for a client that was left out because its update was not
        finite.
      arrived: `[c]`, false for any client that was left out.
      bytes_down: what a client received, `[c]`.
      bytes_up: what a client sent, `[c]`.
      bytes_announced: what each of all clients received, a scalar.
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

    Args:
      turn: of the algorithm.
      conditions: who takes part.
      wire: compression and privacy.
      layout: see `Layout`.

    Raises:
      ValueError: the wire makes no sense for the algorithm.
    """
    wire_.check(wire, turn)
    draw = partial(drawn_for, conditions)
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
        drawn = jax.vmap(lambda client, examples: draw(client, examples, key, number))
        keys, examples, lost = drawn(members.client, members.examples)
        members = members._replace(examples=examples)
        result: _Result = one(shared, server, members, keys, lost)
        announced = _counted(turn.announce(server))
        report = Report(members.client, *result.report, announced)
        members = members._replace(states=result.state, owed=result.owed)
        weights, arrived = members.weight, result.arrived
        server = aggregated(turn, wire, server, result.upload, weights, arrived, keys)
        return server, members, report

    return run


def drawn_for(
    conditions: Conditions, client: Array, examples: Ragged, key: Array, number: Array
) -> tuple[Array, Ragged, Array]:
    """What the conditions draw for one client in a round.

    Args:
      conditions: of the rounds.
      client: its number.
      examples: its examples.
      key: of all rounds; not consumed.
      number: of the round.

    Returns:
      The client's key, its examples with the share of the steps that it finishes, and
      whether it is lost after training.
    """
    key = client_key(key, client, number)
    slowed = conditions_.slowed(conditions, examples, key)
    return key, slowed, conditions_.lost(conditions, key)


def aggregated(
    turn: Algorithm,
    wire: Wire,
    server: Server,
    uploads: Any,
    weights: Array,
    arrived: Array,
    keys: Array,
) -> Server:
    """The server's next state; its old one where nobody has arrived.

    Args:
      turn: of the algorithm.
      wire: whose privacy adds noise, and weighs all clients alike.
      server: its state.
      uploads: the cohort's, `[c, ...]`; of a client that has not arrived zeros, or
        under privacy its reference.
      weights: of the cohort's examples, `[c]`.
      arrived: `[c]`.
      keys: the clients', `[c]`.
    """
    if wire.privacy:
        noise_keys = jax.vmap(lambda key: subkey(key, "noise"))(keys)
        uploads = privacy_.noised(wire.privacy, uploads, noise_keys)
        weights = jnp.ones(len(keys))
    else:
        weights = weights * arrived
    total = weights.sum()
    shares = weights / jnp.where(total > 0, total, 1)
    return select(total > 0, turn.aggregate(server, uploads, shares), server)


class Trained(NamedTuple):
    """A client's round, before its message has arrived.

    Attributes:
      state: what the client keeps once the message has arrived.
      owed: what it owes by then.
      message: what travels.
      upload: what the server makes of the message.
      reference: of the upload.
      losses: of its steps, `[S]`.
      finite: whether all of it is.
    """

    state: Any
    owed: Any
    message: Any
    upload: Any
    reference: Any
    losses: Array
    finite: Array


def client_round(turn: Algorithm, wire: Wire) -> Callable[..., Trained]:
    """`train(shared, received, state, owed, examples, key) -> Trained`, for one client.

    `shared` is what clients know by then, see `progress.known`.

    Args:
      turn: of the algorithm.
      wire: compression and privacy.
    """

    def train(
        shared: Shared,
        received: Any,
        state: Any,
        owed: Any,
        examples: Ragged,
        key: Array,
    ) -> Trained:
        update = turn.client(shared, received, state, examples, key)
        wire_key = subkey(key, "compression")
        sent = wire_.send(wire, update.upload, update.reference, owed, wire_key)
        new = turn.settle(update.state, sent.upload)
        still_owed = turn.owed(sent.owed) if wire_.has_feedback(wire) else sent.owed
        return Trained(
            new,
            still_owed,
            sent.message,
            sent.upload,
            update.reference,
            update.losses,
            _finite(update.losses, (sent.upload, new)),
        )

    return train


class _Result(NamedTuple):
    state: Any
    owed: Any
    upload: Any
    arrived: Array
    report: tuple[Array, Array, Array, Array, Array]


def _one_client(turn: Algorithm, wire: Wire) -> Callable[..., _Result]:
    train = client_round(turn, wire)

    def run(
        shared: Shared, server: Server, member: Members, key: Array, lost: Array
    ) -> _Result:
        _, _, examples, state, owed = member
        received = turn.broadcast(server, state)
        trained = train(shared, received, state, owed, examples, key)
        arrived = trained.finite & ~lost
        keep = lambda new, old: select(arrived, new, old)
        zeros = jax.tree.map(jnp.zeros_like, trained.upload)
        down, up = map(_counted, (received, trained.message))
        up = jnp.where(arrived, up, 0)
        return _Result(
            keep(trained.state, state),
            keep(trained.owed, owed),
            keep(trained.upload, trained.reference if wire.privacy else zeros),
            arrived,
            (trained.losses, trained.finite, arrived, down, up),
        )

    return run


def _finite(losses: Array, results: Any) -> Array:
    """Whether all results are finite; losses of steps that were not done are NaN."""
    good = jnp.isfinite(losses).any() & ~jnp.isinf(losses).any()
    return good & all_finite(results)


def _counted(payload: Any) -> Array:
    return jnp.asarray(ledger.payload_bytes(payload), jnp.uint32)
