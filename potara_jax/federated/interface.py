"""One interface for federated algorithms: pure functions for one client and the server.

An algorithm never sees the client axis, chunks, padding, cohorts or bytes. What travels
is a value: `broadcast` and `announce` return what a client receives, `client` returns
what it sends, and the ledger counts the bytes of those very values.
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
    """What is the same for all clients.

    Attributes:
      base: the frozen parameters.
      pool: all examples.
      round: its number, from 0.
      common: what the server has announced, see `Algorithm.common`.
    """

    base: Params
    pool: Batch
    round: Array | int | None = None
    common: Any = ()


class Size(NamedTuple):
    """The number of clients that may be drawn, and of those in each round's cohort."""

    clients: int
    cohort: int


class Update(NamedTuple):
    """A client's round.

    Compression, clipping and noise act on the difference of the upload and its
    reference alone. Where the upload is a change itself, the reference is zero.

    Attributes:
      state: what it keeps.
      upload: what it sends.
      losses: of its steps, `[S]`.
      reference: what the server knows of the upload beforehand, from what it has sent
        and from the seed, of the same structure: mostly what the client received.
    """

    state: State
    upload: Payload
    losses: Array
    reference: Payload


class Algorithm(NamedTuple):
    """A federated algorithm.

    Its functions are for one client, or for the server. What it declares of itself
    (`personal`, `sum_only`, `changes_base`, `restarts`) is proved by
    tests/federated/test_declarations.py.

    Attributes:
      name: of the algorithm.
      init: `init(adapter, size) -> server`, the server's state before the first round.
      init_client: `init_client(adapter, client, key) -> state`, what one client keeps
        between rounds; the client's number is an array, and the key its own.
      broadcast: `broadcast(server, state) -> payload`, what a client of the cohort
        receives.
      client: `client(shared, payload, state, examples, key) -> Update`, one client's
        round.
      aggregate: `aggregate(server, uploads, weights) -> server`, where uploads are
        stacked over the cohort `[c, ...]`; `weights` `[c]` sum to one and are zero for
        a client that is left out, whose upload is zero. Under privacy nobody is left
        out: a client that is lost has sent its reference.
      personalise: `personalise(shared, payload, state, examples) -> model`, the model
        that a client ends with; it may have been in no cohort.
      personal: clients end with different models, because these depend on their states.
      sum_only: the uploads reach the server's state only through sums over the cohort
        of floating-point numbers, weighted by `weights` or plain, and what a client
        receives does not depend on its state. Only then do clipping and noise give
        differential privacy. None: undeclared, so there is no account of privacy.
      changes_base: `rebase` depends on the server.
      restarts: clients start every round from other factors, drawn or decomposed for
        it, so that nothing of an upload can be made up for in a later one.
      settle: `settle(state, upload) -> state`, a client's new state once its upload has
        arrived as `upload`, after compression and clipping; for a client that keeps
        account of what the server has of it. Default: the state.
      owed: `owed(lost) -> lost`, of what compression with feedback has left out of an
        upload, what the next one must make up for; nothing where uploads close the gap
        to what has arrived anyway. Default: all.
      announce: `announce(server) -> payload`, what every client receives before every
        round, in the cohort or not. Default: nothing.
      common: `common(server) -> value`, what clients know of the server from all
        announcements so far, or from the seed; they get it as `shared.common`. Default:
        nothing.
      rebase: `rebase(base, server) -> base`, the base after the announcements so far;
        it is the same for all clients. Default: the base.
      predict: `predict(task) -> task`, the task on a client's *model*, where that is
        not an adapter. Default: the task.
      turns: algorithms with the same states that take turns, round by round.
    """

    name: str
    init: Callable[[Adapter, Size], Server]
    init_client: Callable[[Adapter, Array, Array], State]
    broadcast: Callable[[Server, State], Payload]
    client: Callable[[Shared, Payload, State, Ragged, Array], Update]
    aggregate: Callable[[Server, Payload, Array], Server]
    personalise: Callable[[Shared, Payload, State, Ragged], Model]
    personal: bool
    sum_only: bool | None
    changes_base: bool = False
    restarts: bool = False
    settle: Callable[[State, Payload], State] = lambda state, upload: state
    owed: Callable[[Payload], Payload] = lambda lost: lost
    announce: Callable[[Server], Payload] = lambda server: ()
    common: Callable[[Server], Any] = lambda server: ()
    rebase: Callable[[Params, Server], Params] = lambda base, server: base
    predict: Callable[[Task], Task] = lambda task: task
    turns: tuple[Algorithm, ...] = ()

    def turn(self, number: int) -> Algorithm:
        """The algorithm of round `number`."""
        return self.turns[number % len(self.turns)] if self.turns else self
