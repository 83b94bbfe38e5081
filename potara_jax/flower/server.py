"""The server of a deployed federation: cohorts, what they need, and the aggregate.

Dimension letters: `C` clients, `c` the cohort.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.clients.training import client_key
from potara_jax.federated import wire as wire_
from potara_jax.federated.aggregation import select
from potara_jax.federated.cohort_round import aggregated
from potara_jax.federated.conditions import Cohort, draw_cohort
from potara_jax.federated.interface import Server
from potara_jax.federated.wire import AS_IT_IS
from potara_jax.flower.client import Order
from potara_jax.flower.deployment import Deployment
from potara_jax.flower.messages import Npy, Refused, Stored, packed, read

Array = jax.Array


class State(NamedTuple):
    """The server between rounds.

    server: the algorithm's state. changed: for each leaf's name the round, from 1, that
    changed it last; 0 for those that are as they were at first. accepted: for each
    client that has ever been heard, the last round whose message arrived.
    """

    server: Server
    changed: Mapping[str, int]
    accepted: dict[int, int]


def begin(deployment: Deployment) -> State:
    """The state before the first round."""
    server = jax.tree.map(np.asarray, deployment.first_server)
    return State(server, dict.fromkeys(packed(server), 0), {})


def secret_key(deployment: Deployment) -> Array:
    """The key of cohorts and noise.

    It is the deployment's, or under privacy a random one, which clients must not know.
    """
    if deployment.wire.privacy is None:
        return deployment.key
    words = jax.random.key_data(deployment.key)
    drawn = [secrets.randbits(32) for _ in range(words.size)]
    drawn = jnp.array(drawn, words.dtype).reshape(words.shape)
    return jax.random.wrap_key_data(drawn, impl=jax.random.key_impl(deployment.key))


def cohort_of(
    deployment: Deployment, counts: Mapping[int, int], key: Array, number: int
) -> Cohort:
    """The clients of a round, and their weights, `[c]`.

    Args:
      deployment: the federation.
      counts: of every client's examples.
      key: the secret one.
      number: of the round.
    """
    every = jnp.array([counts[client] for client in range(deployment.clients)])
    return jax.device_get(draw_cohort(deployment.conditions, every, key, number))


def news(
    deployment: Deployment, state: State, number: int, since: int
) -> dict[str, Npy]:
    """What a node must hear that has the server's state after `since` rounds.

    Args:
      deployment: the federation.
      state: the server's.
      number: of the round.
      since: -1 for a node that has nothing but the initial state.
    """
    arrays = packed(state.server)
    read = deployment.reads[deployment.place(number)]
    return {
        name: array
        for (name, array), broadcast, known in zip(arrays.items(), *read, strict=True)
        if (broadcast and since < 0)
        or ((broadcast or known) and state.changed[name] > max(since, 0))
    }


def orders(
    state: State,
    clients: Iterable[int],
    homes: Mapping[int, int],
    heard: Mapping[int, int],
    number: int,
) -> dict[int, Order]:
    """What every node is asked that has some of the clients.

    Args:
      state: the server's.
      clients: who is asked.
      homes: the clients' nodes; a client without one is left out.
      heard: for each node, the round of the last message that it has answered; none for
        one that may have lost what it had.
      number: of the round.
    """
    by_node: dict[int, list[int]] = {}
    for client in map(int, clients):
        if client in homes:
            by_node.setdefault(homes[client], []).append(client)
    accepted = lambda of: tuple(state.accepted.get(client, -1) for client in of)
    return {
        node: Order(number, tuple(of), heard.get(node, -1), accepted(of))
        for node, of in by_node.items()
    }


def checked(
    replies: Mapping[int, Mapping[str, Stored]], like: Any, *, largest: float
) -> tuple[dict[int, Any], dict[int, str]]:
    """What clients have sent, and why what some have sent is refused.

    Args:
      replies: arrays by client.
      like: shapes of what is expected.
      largest: the largest magnitude of a number.
    """
    accepted: dict[int, Any] = {}
    refused: dict[int, str] = {}
    for client, arrays in replies.items():
        try:
            accepted[client] = read(arrays, like, largest=largest)
        except Refused as reason:
            refused[client] = str(reason)
    return accepted, refused


@cache
def aggregator(deployment: Deployment, place: int) -> Callable[..., Server]:
    """`aggregate(server, cohort, messages, arrived, secret, number) -> server`, jitted.

    Messages are the cohort's, `[c, ...]`, zeros for one that has not arrived, as
    `arrived`, `[c]`, says. The secret is the key of the noise.

    Args:
      deployment: the federation.
      place: of the turn among the algorithm's turns.
    """
    turn, wire = deployment.turn(place), deployment.wire
    reference = None if wire == AS_IT_IS else deployment.reference(place)

    def aggregate(
        server: Server,
        cohort: Cohort,
        messages: Any,
        arrived: Array,
        secret: Array,
        number: Array,
    ) -> Server:
        def receive(client: Array, message: Any, arrived: Array) -> Any:
            if reference is None:
                return message
            key = client_key(deployment.key, client, number)
            before = reference(server, key, number)
            upload = wire_.receive(wire, message, before)
            zeros = jax.tree.map(jnp.zeros_like, upload)
            return select(arrived, upload, before if wire.privacy else zeros)

        uploads = jax.vmap(receive)(cohort.client, messages, arrived)
        keys = jax.vmap(lambda c: client_key(secret, c, number))(cohort.client)
        weights = cohort.weight
        return aggregated(turn, wire, server, uploads, weights, arrived, keys)

    return jax.jit(aggregate)


def next_state(
    deployment: Deployment,
    state: State,
    cohort: Cohort,
    messages: Mapping[int, Any],
    secret: Array,
    number: int,
) -> State:
    """The state after a round, of which some clients' messages have arrived.

    Args:
      deployment: the federation.
      state: before the round.
      cohort: of the round.
      messages: by client, as `messages.read` gives them.
      secret: the key of the noise.
      number: of the round.
    """
    place = deployment.place(number)
    zeros = lambda x: np.zeros(x.shape, x.dtype)
    nothing = jax.tree.map(zeros, deployment.messages[place])
    each = [messages.get(int(client), nothing) for client in cohort.client]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    arrived = np.isin(cohort.client, list(messages))
    args = cohort, stacked, arrived, secret, np.int32(number)
    aggregate = aggregator(deployment, place)
    server = jax.tree.map(np.asarray, aggregate(state.server, *args))
    before = packed(state.server)
    changed = {
        name: state.changed[name] if array == before[name] else number + 1
        for name, array in packed(server).items()
    }
    accepted = state.accepted | dict.fromkeys(messages, number)
    return State(server, changed, accepted)


def merge_weights(
    deployment: Deployment, measured: Mapping[int, Any], counts: Mapping[int, int]
) -> dict[int, dict[str, Npy]]:
    """Every client's merge weight as a message, from what all of them have measured.

    Nothing where each client has its weight from its samples alone.

    Args:
      deployment: the federation.
      measured: what each client has sent.
      counts: of each one's samples.
    """
    clients, decide = sorted(measured), deployment.estimator.decide
    if decide is None or not clients:
        return {}
    rows = [measured[client] for client in clients]
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *rows)
    weight = jax.jit(decide)(stacked, jnp.array([counts[c] for c in clients])).weight
    row = lambda at: {"weight": jax.tree.map(lambda x: np.asarray(x)[at], weight)}
    return {client: packed(row(at)) for at, client in enumerate(clients)}
