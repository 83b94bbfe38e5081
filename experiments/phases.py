"""A phase of a cell: rounds of one algorithm, kept after every one of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.checkpoints import Saved
from experiments.display import Display
from experiments.store import Cell, Store
from potara_jax.adapters.lora import Adapter
from potara_jax.data.federation import Federation
from potara_jax.federated import ledger, rounds
from potara_jax.federated.interface import Algorithm, Shared


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
    progress = rounds.start(phase.algorithm, start)
    kept = _empty_marks(phase, progress, clients)
    saved = store.begin_phase(cell, phase.name, (progress, kept))
    saved = saved or Saved(0, (progress, kept), [], 0.0)
    display.skip(saved.round)
    shared = Shared(base, federation.pool)
    for number in range(saved.round, phase.rounds):
        began = time.monotonic()
        progress, kept = saved.state
        progress, report = phase.round(shared, progress, federation.train, key, number)
        record = _record(cell, phase, number, jax.device_get(report))
        kept = _mark(phase, number, progress, kept, clients)
        seconds = saved.seconds + time.monotonic() - began
        history = [*saved.history, record]
        saved = Saved(number + 1, (progress, kept), history, seconds)
        store.end_round(cell, phase.name, saved)
        display.round(f"{cell.name} {phase.name}", record["loss"])
        _name_left_out(saved.history, cell, store)
    return _outcome(phase, saved, clients)


def _name_left_out(history: list[dict], cell: Cell, store: Store) -> None:
    """A line for a client that is left out now and was not in the round before."""
    before = set(history[-2]["left_out"]) if len(history) > 1 else set()
    for client in sorted(set(history[-1]["left_out"]) - before):
        store.warn(
            f"{cell.name} {history[-1]['phase']}: client {client} is left out from "
            f"round {history[-1]['round']} on, while its update is not finite"
        )


def _outcome(phase, saved, clients) -> Outcome:
    progress, kept = saved.state
    adapters = rounds.personalised(phase.algorithm, progress, clients=clients)
    final = ledger.payload_bytes(_received(phase.algorithm, progress))
    return Outcome(adapters, kept, saved.history, clients * final, saved.seconds)


def _received(algorithm, progress):
    """What one client would receive now, as shapes."""
    one = jax.tree.map(lambda x: x[0], progress.states)
    return jax.eval_shape(algorithm.broadcast, progress.server, one)


def _record(cell, phase, number, report) -> dict:
    left_out = report.cohort[~report.finite]
    losses = report.losses[report.finite]
    return {
        "heterogeneity": cell.heterogeneity,
        "seed": cell.seed,
        "phase": phase.name,
        "round": number + 1,
        "loss": float(np.mean(losses)) if losses.size else None,
        "clients": len(report.cohort),
        "steps": int(report.losses.size),
        "left_out": [int(client) for client in left_out],
        "bytes_up": sum(map(int, report.bytes_up)),
        "bytes_down": sum(map(int, report.bytes_down)),
    }


def _first(phase, progress, clients) -> Adapter:
    adapters = rounds.personalised(phase.algorithm, progress, clients=clients)
    return jax.tree.map(lambda x: x[0], adapters)


def _empty_marks(phase, progress, clients) -> Adapter:
    if not phase.marks:
        return {}
    shapes = jax.eval_shape(lambda p: _first(phase, p, clients), progress)
    return jax.tree.map(lambda x: jnp.zeros((len(phase.marks), *x.shape)), shapes)


def _mark(phase, number, progress, kept, clients) -> Adapter:
    if number + 1 not in phase.marks:
        return kept
    place = list(phase.marks).index(number + 1)
    first = _first(phase, progress, clients)
    return jax.tree.map(lambda all_, x: all_.at[place].set(x), kept, first)
