"""A phase of a cell: rounds of one algorithm, kept after every one of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.checkpoints import Saved
from experiments.display import Display
from experiments.store import Cell, Store
from potara_jax.adapters.lora import Adapter
from potara_jax.data.federation import Federation
from potara_jax.federated import ledger, rounds
from potara_jax.federated.conditions import EVERYBODY, Conditions
from potara_jax.federated.interface import Algorithm, Shared
from potara_jax.federated.wire import AS_IT_IS, Wire


class Phase(NamedTuple):
    """Which algorithm runs, compiled, for how many rounds.

    `marks`: rounds after which the first client's model is kept (the common one, where
    the algorithm gives all clients the same).
    """

    name: str
    algorithm: Algorithm
    round: rounds.RoundFn
    rounds: int
    marks: Sequence[int] = ()
    conditions: Conditions = EVERYBODY
    wire: Wire = AS_IT_IS


class Outcome(NamedTuple):
    """What a phase gives: every client's adapter `[C, ...]`, and its account.

    `kept` `[marks, ...]` are the adapters at the marks; `history` has a record a round;
    `final_bytes` is what all clients receive to have their model at the end.
    """

    adapters: Adapter
    kept: Adapter
    history: list[dict]
    final_bytes: int
    seconds: float


def run_phase(
    phase: Phase,
    start: Adapter,
    base,
    federation: Federation,
    key: jax.Array,
    *,
    cell: Cell,
    store: Store,
    display: Display,
) -> Outcome:
    """All rounds of a phase, from where the store has it.

    start: the adapters that the clients start from, `[C, ...]`; the server starts from
    the first client's.
    """
    clients = federation.train.count.shape[0]
    shared = Shared(base, federation.pool)
    progress = rounds.start(phase.algorithm, start, phase.conditions)
    owing = phase.wire, shared, progress, federation.train
    progress = rounds.owing(phase.algorithm, *owing)
    kept = _empty_marks(phase, shared, progress, clients)
    saved = store.begin_phase(cell, phase.name, (progress, kept))
    saved = saved or Saved(0, (progress, kept), [], 0.0)
    display.skip(saved.round)
    for number in range(saved.round, phase.rounds):
        began = time.monotonic()
        progress, kept = saved.state
        progress, report = phase.round(shared, progress, federation.train, key, number)
        record = _record(cell, phase, number, jax.device_get(report), clients)
        kept = _mark(phase, number, shared, progress, kept, clients)
        seconds = saved.seconds + time.monotonic() - began
        history = [*saved.history, record]
        saved = Saved(number + 1, (progress, kept), history, seconds)
        store.end_round(cell, phase.name, saved)
        display.round(f"{cell.name} {phase.name}", record["loss"])
        _name_left_out(saved.history, cell, store)
    return _outcome(phase, shared, saved, clients)


def _name_left_out(history: list[dict], cell: Cell, store: Store) -> None:
    """A line for a client that is left out now and was not in the round before."""
    before = set(history[-2]["left_out"]) if len(history) > 1 else set()
    for client in sorted(set(history[-1]["left_out"]) - before):
        store.warn(
            f"{cell.name} {history[-1]['phase']}: client {client} is left out from "
            f"round {history[-1]['round']} on, while its update is not finite"
        )


def _outcome(phase, shared, saved, clients) -> Outcome:
    progress, kept = saved.state
    adapters = _models(phase, shared, progress, clients, phase.rounds)
    final = _final_bytes(phase, progress, clients)
    return Outcome(adapters, kept, saved.history, final, saved.seconds)


def _models(phase, shared, progress, clients, number) -> Any:
    return rounds.personalised(
        phase.algorithm, shared, progress, clients=clients, number=number
    )


def _final_bytes(phase, progress, clients) -> int:
    """What all clients receive after the last round, to have their models."""
    algorithm = phase.algorithm.turn(phase.rounds)

    def one(_, state):
        received = algorithm.broadcast(progress.server, state)
        announced = algorithm.announce(progress.server)
        return jnp.uint32(ledger.payload_bytes((received, announced)))

    each = jax.vmap(one)(jnp.arange(clients), progress.states)
    return sum(map(int, each))


def _record(cell, phase, number, report, clients: int) -> dict:
    left_out = report.cohort[~report.finite]
    losses = report.losses[np.isfinite(report.losses)]
    announced = int(report.bytes_announced) * clients
    return {
        "heterogeneity": cell.heterogeneity,
        "seed": cell.seed,
        "phase": phase.name,
        "round": number + 1,
        "loss": float(np.mean(losses)) if losses.size else None,
        "clients": len(report.cohort),
        "arrived": int(report.arrived.sum()),
        "steps": int(losses.size),
        "left_out": [int(client) for client in left_out],
        "bytes_up": sum(map(int, report.bytes_up)),
        "bytes_down": sum(map(int, report.bytes_down)) + announced,
    }


def _first(phase, shared, progress, clients, number) -> Adapter:
    adapters = _models(phase, shared, progress, clients, number)
    return jax.tree.map(lambda x: x[0], adapters)


def _empty_marks(phase, shared, progress, clients) -> Adapter:
    if not phase.marks:
        return {}
    first = lambda shared, progress: _first(phase, shared, progress, clients, 0)
    shapes = jax.eval_shape(first, shared, progress)
    return jax.tree.map(lambda x: jnp.zeros((len(phase.marks), *x.shape)), shapes)


def _mark(phase, number, shared, progress, kept, clients) -> Adapter:
    if number + 1 not in phase.marks:
        return kept
    place = list(phase.marks).index(number + 1)
    first = _first(phase, shared, progress, clients, number + 1)
    return jax.tree.map(lambda all_, x: all_.at[place].set(x), kept, first)
