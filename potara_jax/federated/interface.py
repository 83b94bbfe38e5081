"""One interface for federated algorithms: pure functions for one client and the server.

An algorithm never sees the client axis, chunks, padding, cohorts or bytes. What travels
is a value: `broadcast` returns what a client receives, `client` what it sends, and the
ledger counts the bytes of those very values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from potara_jax.adapters.lora import Adapter, Array, Params
from potara_jax.data.federation import Batch, Ragged

Server = Any
State = Any
Payload = Any


class Shared(NamedTuple):
    """What all clients have alike and never changes hands: the base and the pool."""

    base: Params
    pool: Batch


class Update(NamedTuple):
    """What a client's round gives: its new state, what it sends, losses `[S]`."""

    state: State
    upload: Payload
    losses: Array


class Algorithm(NamedTuple):
    """A federated algorithm.

    `init(adapter) -> server`: the server's state before the first round.
    `init_client(adapter) -> state`: what one client keeps between rounds.
    `broadcast(server, state) -> payload`: what one client receives.
    `client(shared, payload, state, examples, key) -> Update`: one client's round.
    `aggregate(server, uploads, weights) -> server`: uploads stacked over the cohort
      `[C, ...]`; `weights` `[C]` sum to one, zero for a client that is left out.
    `personalise(payload, state) -> adapter`: the model that a client ends with.
    """

    name: str
    init: Callable[[Adapter], Server]
    init_client: Callable[[Adapter], State]
    broadcast: Callable[[Server, State], Payload]
    client: Callable[[Shared, Payload, State, Ragged, Array], Update]
    aggregate: Callable[[Server, Payload, Array], Server]
    personalise: Callable[[Payload, State], Adapter]
