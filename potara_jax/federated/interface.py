"""One interface for federated algorithms: pure functions for one client and the server.

An algorithm never sees the client axis, chunks, padding, cohorts or bytes. What travels
is a value: `broadcast` and `announce` return what a client receives, `client` what it
sends, and the ledger counts the bytes of those very values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from potara_jax.adapters.lora import Adapter, Array, Params
from potara_jax.clients.task import Task
from potara_jax.data.federation import Batch, Ragged

Server = Any
State = Any
Payload = Any
Model = Any


class Shared(NamedTuple):
    """What all clients have alike: the base, the pool, and what the server announced.

    `round` counts from 0; `common` is the algorithm's own, see `Algorithm.common`.
    """

    base: Params
    pool: Batch
    round: Array | None = None
    common: Any = ()


class Size(NamedTuple):
    """How many clients there are, and how many of them a round has."""

    clients: int
    cohort: int


class Update(NamedTuple):
    """What a client's round gives: its new state, what it sends, losses `[S]`."""

    state: State
    upload: Payload
    losses: Array


class Algorithm(NamedTuple):
    """A federated algorithm.

    `init(adapter, size) -> server`: the server's state before the first round.
    `init_client(adapter, client) -> state`: what one client keeps between rounds; the
      client's number is an array.
    `broadcast(server, state) -> payload`: what one client of a round's cohort receives.
    `client(shared, payload, state, examples, key) -> Update`: one client's round.
    `aggregate(server, uploads, weights) -> server`: uploads stacked over the cohort
      `[c, ...]`; `weights` `[c]` sum to one, zero for a client that is left out.
    `personalise(shared, payload, state) -> model`: what a client ends with.

    and, where an algorithm needs them,

    `announce(server) -> payload`: what every client receives before every round, in
      its cohort or not; and `common(server) -> value`: what the clients know of the
      server by all announcements so far (or by the seed), as `shared.common`.
    `rebase(base, server) -> base`: the base as all clients have it by then; one, shared
      by all, and never a client's own.
    `predict(task) -> task`: the task on a client's *model*, where that is not an
      adapter.
    `turns`: algorithms of the same states that take turns, round by round.
    """

    name: str
    init: Callable[[Adapter, Size], Server]
    init_client: Callable[[Adapter, Array], State]
    broadcast: Callable[[Server, State], Payload]
    client: Callable[[Shared, Payload, State, Ragged, Array], Update]
    aggregate: Callable[[Server, Payload, Array], Server]
    personalise: Callable[[Shared, Payload, State], Model]
    announce: Callable[[Server], Payload] = lambda server: ()
    common: Callable[[Server], Any] = lambda server: ()
    rebase: Callable[[Params, Server], Params] = lambda base, server: base
    predict: Callable[[Task], Task] = lambda task: task
    turns: tuple[Algorithm, ...] = ()

    def turn(self, number: int) -> Algorithm:
        """The algorithm of a round."""
        return self.turns[number % len(self.turns)] if self.turns else self
