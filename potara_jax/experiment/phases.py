"""A phase of a cell: rounds of one algorithm, kept after every one of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.data.federation import Federation
from potara_jax.evaluation.metrics import Scores
from potara_jax.federated import ledger, rounds
from potara_jax.federated.conditions import EVERYBODY, Conditions
from potara_jax.federated.interface import Algorithm, Shared
from potara_jax.federated.rounds import Progress
from potara_jax.federated.wire import AS_IT_IS, Wire
from potara_jax.runs.checkpoints import Saved
from potara_jax.runs.progress import Display
from potara_jax.runs.store import Cell, Store

Models = Any
Evaluate = Callable[[Shared, Models, Any], Scores]


class Budget(NamedTuple):
    """Bytes that all clients may send and receive, and local steps of each."""

    bytes: int
    steps: float


class Phase(NamedTuple):
    """Which algorithm runs, compiled, for how many rounds.

    `marks`: rounds after which every client's model is scored by `evaluate(shared,
    models, test)`; `keep`: those of them whose models are kept. `budget`: models are
    scored too after the last round within its bytes, and within its steps.
    """

    name: str
    algorithm: Algorithm
    round: rounds.RoundFn
    rounds: int
    evaluate: Evaluate | None = None
    marks: Sequence[int] = ()
    keep: Sequence[int] = ()
    conditions: Conditions = EVERYBODY
    wire: Wire = AS_IT_IS
    budget: Budget | None = None

    @property
    def slots(self) -> list[int]:
        """Where marks are kept: by their rounds, or by what ends with them."""
        return [*self.marks, *(_ENDS if self.budget else ())]


_ENDS = -1, -2  # the slots of the last round within the bytes, and within the steps


class Mark(NamedTuple):
    """A phase after some rounds.

    `round`: how many, 0 where that has not been; `scores`: of every client, `[C]`;
    `received`: bytes that a client receives to have its model then, `[C]`; `seconds`
    until then.
    """

    round: jax.Array
    scores: Scores
    received: jax.Array
    seconds: jax.Array


class Outcome(NamedTuple):
    """What a phase gives: every client's model `[C, ...]`, and its account.

    `shared` is what all clients know by then; `progress` the state itself; `history`
    has a record a round; `final_bytes`: what all clients receive to have their models;
    `marks` and `kept` are by round.
    """

    models: Models
    shared: Shared
    progress: Progress
    history: list[dict]
    final_bytes: int
    seconds: float
    marks: dict[int, Mark] = {}  # noqa: RUF012
    kept: dict[int, Models] = {}  # noqa: RUF012


def run_phase(
    phase: Phase,
    progress: Progress,
    base,
    federation: Federation,
    key: jax.Array,
    *,
    cell: Cell,
    store: Store,
    display: Display,
) -> Outcome:
    """All rounds of a phase, from `progress` or from where the store has it."""
    shared = Shared(base, federation.pool)
    owing = phase.wire, shared, progress, federation.train
    progress = rounds.owing(phase.algorithm, *owing)
    seen = _nothing_seen(phase, shared, progress, federation)
    saved = store.begin_phase(cell, phase.name, (progress, seen))
    saved = saved or Saved(0, (progress, seen), [], 0.0)
    display.skip(saved.round)
    for number in store.traced(phase.name, range(saved.round, phase.rounds)):
        began = time.monotonic()
        progress, seen = saved.state
        progress, report = phase.round(shared, progress, federation.train, key, number)
        report, clients = jax.device_get(report), len(federation.train.count)
        record = record_of(cell, phase.name, number, report, clients)
        seconds = saved.seconds + time.monotonic() - began
        history = [*saved.history, record]
        if due := _due(phase, history, progress, clients):
            args = shared, progress, federation, number + 1, seconds
            mark, models = _look(phase, *args)
            seen = seen | {n: (mark, models if n in phase.keep else ()) for n in due}
        saved = Saved(number + 1, (progress, seen), history, seconds)
        store.end_round(cell, phase.name, saved)
        display.round(f"{cell.name} {phase.name}", record["loss"])
        name_left_out(saved.history, cell, store)
    return _outcome(phase, shared, saved, federation)


def name_left_out(history: list[dict], cell: Cell, store: Store) -> None:
    """A line for a client that is left out now and was not in the round before."""
    before = set(history[-2]["left_out"]) if len(history) > 1 else set()
    for client in sorted(set(history[-1]["left_out"]) - before):
        store.warn(
            f"{cell.name} {history[-1]['phase']}: client {client} is left out from "
            f"round {history[-1]['round']} on, while its update is not finite"
        )


def _outcome(phase, shared, saved, federation) -> Outcome:
    (progress, seen), number = saved.state, phase.rounds
    found = {int(mark.round): mark for mark, _ in seen.values() if mark.round > 0}
    clients = len(federation.train.count)
    return Outcome(
        _models(phase, shared, progress, clients, number),
        rounds.known(phase.algorithm.turn(number), shared, progress.server, number),
        progress,
        saved.history,
        sum(map(int, _received(phase, progress, clients, number))),
        saved.seconds,
        {number: found[number] for number in sorted(found)},
        {number: seen[number][1] for number in phase.keep},
    )


def _models(phase, shared, progress, clients, number) -> Models:
    return rounds.personalised(
        phase.algorithm, shared, progress, clients=clients, number=number
    )


def _received(phase, progress, clients, number) -> jax.Array:
    """Bytes that every client receives after some rounds, to have its model."""
    algorithm = phase.algorithm.turn(number)

    def one(_, state):
        received = algorithm.broadcast(progress.server, state)
        announced = algorithm.announce(progress.server)
        return jnp.uint32(ledger.payload_bytes((received, announced)))

    return jax.vmap(one)(jnp.arange(clients), progress.states)


def _due(phase: Phase, history: list[dict], progress, clients: int) -> list[int]:
    """The slots that the round just done fills."""
    number = len(history)
    due = [number] if number in phase.marks else []
    if phase.budget is None:
        return due
    final = sum(map(int, _received(phase, progress, clients, number)))
    sent = [line["bytes_up"] + line["bytes_down"] for line in history]
    steps = [line["steps"] / clients for line in history]
    spent = sum(sent) + final, sum(steps)
    ends = zip(_ENDS, phase.budget, spent, (sent[-1], steps[-1]), strict=True)
    return due + [slot for slot, most, now, more in ends if now <= most < now + more]


def _look(phase, shared, progress, federation, number, seconds) -> tuple[Mark, Models]:
    clients = len(federation.train.count)
    models = _models(phase, shared, progress, clients, number)
    known = rounds.known(phase.algorithm.turn(number), shared, progress.server, number)
    scores = phase.evaluate(known, models, federation.test)
    received = _received(phase, progress, clients, number)
    mark = Mark(jnp.int32(number), scores, received, jnp.float32(seconds))
    if number not in phase.keep:
        return mark, ()
    return mark, jax.tree.map(jnp.copy, models)  # the next round takes the state itself


def _nothing_seen(phase, shared, progress, federation) -> dict:
    """Zeros in the place of what is seen at the marks."""
    clients = len(federation.train.count)
    models = lambda *args: _models(phase, *args, clients, phase.rounds)
    shapes = jax.eval_shape(models, shared, progress)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    none = jnp.zeros(clients)
    scores, received = Scores(none, none), none.astype(jnp.uint32)
    mark = Mark(jnp.int32(0), scores, received, jnp.float32(0))
    return {n: (mark, zeros if n in phase.keep else ()) for n in phase.slots}


def record_of(cell: Cell, phase: str, number: int, report, clients: int) -> dict:
    """A round's line in `metrics.jsonl`, from its report on the host."""
    left_out = report.cohort[~report.finite]
    losses = report.losses[np.isfinite(report.losses)]
    announced = int(report.bytes_announced) * clients
    return {
        "heterogeneity": cell.heterogeneity,
        "seed": cell.seed,
        "phase": phase,
        "round": number + 1,
        "loss": float(np.mean(losses)) if losses.size else None,
        "clients": len(report.cohort),
        "arrived": int(report.arrived.sum()),
        "steps": int(losses.size),
        "left_out": [int(client) for client in left_out],
        "bytes_up": sum(map(int, report.bytes_up)),
        "bytes_down": sum(map(int, report.bytes_down)) + announced,
    }


def until(outcome: Outcome, number: int) -> Outcome:
    """A phase as it was after some rounds, of those whose models are kept."""
    if number == len(outcome.history):
        return outcome
    mark = outcome.marks[number]
    return outcome._replace(
        models=outcome.kept[number],
        history=outcome.history[:number],
        final_bytes=sum(map(int, mark.received)),
        seconds=float(mark.seconds),
    )
