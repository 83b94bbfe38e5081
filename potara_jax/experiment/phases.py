"""A phase of a cell: rounds of one algorithm, saved after each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters.lora import Params
from potara_jax.data.federation import Federation, Ragged
from potara_jax.experiment.side_by_side import Beside
from potara_jax.federated import rounds
from potara_jax.federated.cohort_round import Report
from potara_jax.federated.conditions import Conditions
from potara_jax.federated.interface import Algorithm, Shared
from potara_jax.federated.progress import (
    Progress,
    known,
    model_bytes,
    personalised,
    with_feedback,
)
from potara_jax.federated.rounds import Round, Step
from potara_jax.federated.streaming import HostProgress
from potara_jax.federated.wire import Wire
from potara_jax.runs import compiled
from potara_jax.runs.checkpoints import Checkpoint
from potara_jax.runs.progress import Progress as Display
from potara_jax.runs.store import Cell, Store

Models = Any
Scores = Any
AnyProgress = Progress | HostProgress
Evaluate = Callable[[Shared, Models, Any], Scores]
OnRound = Callable[[dict[str, Any], float], None]


class Budget(NamedTuple):
    """Bytes that all clients may send and receive, and local steps each may take."""

    bytes: int
    steps: float


class Phase(NamedTuple):
    """Rounds of an algorithm, and when its models are scored and kept.

    Attributes:
      name: of the phase.
      round: by `make_round`.
      rounds: their number.
      evaluate: `evaluate(shared, models, test)` gives a pytree of `[C, ...]` and can be
        traced in the first two.
      marks: rounds after which the models are scored.
      keep: those of the marks whose models are kept.
      budget: models are also scored after the last round within its bytes, and within
        its steps.
      clients: whose models are scored and returned; default: all.
    """

    name: str
    round: Round
    rounds: int
    evaluate: Evaluate | None = None
    marks: Sequence[int] = ()
    keep: Sequence[int] = ()
    budget: Budget | None = None
    clients: Sequence[int] | np.ndarray | None = None

    def score(self, shared: Shared, models: Models, test: Any) -> Scores:
        """The scores of models, of a phase that has a way to score."""
        assert self.evaluate is not None, f"{self.name} has no way to score"
        return self.evaluate(shared, models, test)

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm of the rounds."""
        return self.round.algorithm

    @property
    def conditions(self) -> Conditions:
        """The conditions of the rounds."""
        return self.round.conditions

    @property
    def wire(self) -> Wire:
        """The way of the uploads."""
        return self.round.wire

    @property
    def slots(self) -> list[int]:
        """The names of all marks: their rounds, or what ends with them."""
        return [*self.marks, *(_ENDS if self.budget else ())]


_ENDS = -1, -2  # the slots of the last round within the bytes, and within the steps


class Mark(NamedTuple):
    """A phase after some rounds, for the phase's clients.

    Attributes:
      round: the number of rounds done.
      scores: the clients' scores, `[C]`.
      received: the bytes that each received last to have its model, `[C]`.
      seconds: until then.
    """

    round: jax.Array
    scores: Scores
    received: jax.Array
    seconds: jax.Array


class Outcome(NamedTuple):
    """The results of a phase: its clients' models, and what they cost.

    Attributes:
      models: stacked, `[C, ...]`.
      shared: what all clients know by then.
      progress: the last state.
      history: one record per round.
      final_bytes: what these clients receive last to have their models.
      seconds: of all rounds.
      marks: by round.
      kept: models by round.
    """

    models: Models
    shared: Shared
    progress: AnyProgress
    history: list[dict[str, Any]]
    final_bytes: int
    seconds: float
    marks: dict[int, Mark] = {}  # noqa: RUF012
    kept: dict[int, Models] = {}  # noqa: RUF012


def run_phase(
    phase: Phase,
    progress: AnyProgress,
    base: Params,
    federation: Federation,
    key: jax.Array,
    *,
    cell: Cell,
    store: Store,
    display: Display,
    on_round: OnRound | None = None,
) -> Outcome:
    """Run all rounds of a phase, from `progress` or from where the store has it.

    Args:
      phase: the rounds, and when to score.
      progress: before the first round, with the clients' states on the device or on the
        host. It is consumed.
      base: the base that all clients share.
      federation: the pool, and the clients' examples and tests.
      key: of all rounds.
      cell: what the phase belongs to.
      store: keeps every round.
      display: shows every round.
      on_round: called with a round's record and its seconds, unless models were scored
        while it was computed.
    """
    view = _View(phase, Shared(base, federation.pool), federation, cell)
    progress, checkpoint = _begin(view, progress, store)
    args = phase.round, view.shared, federation.train, progress, key
    steps = rounds.iterate(*args, first=checkpoint.round, last=phase.rounds)
    display.skip(checkpoint.round)
    with Beside() as saving:
        for done in _rounds_done(view, store.traced(phase.name, steps), checkpoint):
            progress, checkpoint = done.progress, done.checkpoint
            saving.end()  # before another checkpoint is copied
            saving.begin(store.saver(cell, phase.name, checkpoint))
            if isinstance(progress, HostProgress):
                saving.end()  # before the next round changes its states
            record = checkpoint.history[-1]
            if on_round and done.seconds is not None:
                on_round(record, done.seconds)
            display.round(f"{cell.name} {phase.name}", record["loss"])
            name_left_out(checkpoint.history, cell, store)
    compiled.forget_many()
    return _outcome(view, progress, checkpoint)


class _View(NamedTuple):
    """What is needed to score a phase after some rounds."""

    phase: Phase
    shared: Shared
    federation: Federation
    cell: Cell

    @property
    def all_clients(self) -> int:
        """The number of all clients."""
        return len(self.federation.train.count)

    @property
    def chosen(self) -> np.ndarray | None:
        """The phase's clients; None for all."""
        clients = self.phase.clients
        return None if clients is None else np.asarray(clients, np.int32)

    @property
    def examples(self) -> Ragged:
        """The training examples of the phase's clients."""
        if self.chosen is None:
            return self.federation.train
        return jax.tree.map(lambda x: x[self.chosen], self.federation.train)

    @property
    def num_clients(self) -> int:
        """The number of the phase's clients."""
        chosen = self.chosen
        return self.all_clients if chosen is None else len(chosen)

    def progress_of(self, progress: AnyProgress) -> Progress:
        """The progress of the phase's clients, on the device."""
        return rounds.progress_of(self.phase.algorithm, progress, self.chosen)

    @property
    def test(self) -> Any:
        """The tests of the phase's clients."""
        if self.chosen is None:
            return self.federation.test
        return jax.tree.map(lambda x: x[self.chosen], self.federation.test)


# --- Beginning and ending ------------------------------------------------------------


def _begin(
    view: _View, progress: AnyProgress, store: Store
) -> tuple[AnyProgress, Checkpoint]:
    """The state before the next round, and what is kept so far.

    States on the host can only continue from the last round: after an earlier one, or
    if they are lost, the phase starts over.
    """
    name, cell = view.phase.name, view.cell
    if isinstance(progress, Progress):
        algorithm, wire = view.phase.algorithm, view.phase.wire
        train = view.federation.train
        progress = with_feedback(algorithm, wire, view.shared, progress, train)
    nothing = rounds.checkpoint(progress), _nothing_seen(view, progress)
    checkpoint = store.begin_phase(cell, name, nothing)
    if checkpoint and not rounds.resumable(progress, checkpoint.round):
        store.warn(f"{cell.name} {name}: starting over, as the last round is lost")
        store.forget_phase(cell, name)
        checkpoint = store.begin_phase(cell, name, nothing)
    if checkpoint:
        return rounds.resume(progress, checkpoint.state[0]), checkpoint
    if isinstance(progress, HostProgress):
        progress.states.clear()
    return progress, Checkpoint(0, nothing, [], 0.0)


def _outcome(view: _View, progress: AnyProgress, checkpoint: Checkpoint) -> Outcome:
    phase, number, seen = view.phase, view.phase.rounds, checkpoint.state[1]
    chosen = view.progress_of(progress)
    marks = {int(mark.round): mark for mark, _ in seen.values() if mark.round > 0}
    return Outcome(
        _models(view, chosen, number),
        known(phase.algorithm.turn(number), view.shared, chosen.server, number),
        progress,
        checkpoint.history,
        sum(map(int, _received(view, chosen, number))),
        checkpoint.seconds,
        {number: marks[number] for number in sorted(marks)},
        {number: seen[number][1] for number in phase.keep},
    )


def _nothing_seen(view: _View, progress: AnyProgress) -> dict[int, tuple[Mark, Any]]:
    """Zeros in place of what the marks record."""
    phase, number = view.phase, view.phase.rounds
    if not phase.slots:
        return {}

    def see() -> tuple[Mark, Models]:
        return _see(view, view.progress_of(progress), number, 0.0)

    zeros = lambda x: jnp.zeros(x.shape, x.dtype)
    mark, models = jax.tree.map(zeros, jax.eval_shape(see))
    return {n: (mark, models if n in phase.keep else ()) for n in phase.slots}


# --- After a round -------------------------------------------------------------------


class _Done(NamedTuple):
    """A finished round, and what is kept after it.

    `seconds`: the round's; None if models were scored while it was computed.
    """

    progress: AnyProgress
    checkpoint: Checkpoint
    seconds: float | None


def _rounds_done(
    view: _View, steps: Iterable[Step], checkpoint: Checkpoint
) -> Iterator[_Done]:
    """The rounds, timed without the scoring of models.

    A round is computed while the one before is written to a file. With states on the
    host it begins before the caller has that one, and its time begins then.
    """
    scored, began = False, time.monotonic()
    for step in steps:
        seconds = time.monotonic() - began
        checkpoint, scores = _add(view, checkpoint, step, seconds)
        ahead = isinstance(step.progress, HostProgress)
        began = time.monotonic()
        yield _Done(step.progress, checkpoint, None if ahead and scored else seconds)
        scored, began = scores, began if ahead else time.monotonic()


def _add(
    view: _View, checkpoint: Checkpoint, step: Step, seconds: float
) -> tuple[Checkpoint, bool]:
    """What is kept after another round, and whether models were scored."""
    args = view.cell, view.phase.name, step.number, step.report
    history = [*checkpoint.history, record_of(*args, view.all_clients)]
    seen, seconds = checkpoint.state[1], checkpoint.seconds + seconds
    due = _due(view, step.progress, history)
    if due:
        seen = seen | _seen(view, step, seconds, due)
    state = rounds.checkpoint(step.progress), seen
    return Checkpoint(step.number + 1, state, history, seconds), bool(due)


def _seen(
    view: _View, step: Step, seconds: float, due: list[int]
) -> dict[int, tuple[Mark, Models]]:
    """What the slots that are due see after a round."""
    number, keep = step.number + 1, view.phase.keep
    mark, models = _see(view, view.progress_of(step.progress), number, seconds)
    if number in keep:  # the next round takes the state itself
        models = jax.tree.map(jnp.copy, models)
    return {slot: (mark, models if slot in keep else ()) for slot in due}


def _due(
    view: _View, progress: AnyProgress, history: list[dict[str, Any]]
) -> list[int]:
    """The slots that the last round fills."""
    phase, clients, final = view.phase, view.all_clients, 0
    if phase.budget:
        everybody = rounds.progress_of(phase.algorithm, progress)
        received = model_bytes(
            phase.algorithm, everybody, clients=clients, number=len(history)
        )
        final = sum(map(int, received))
    return due_slots(phase, history, clients=clients, final_bytes=final)


def _see(
    view: _View, chosen: Progress, number: int, seconds: float
) -> tuple[Mark, Models]:
    """The phase's clients after some rounds, and their models."""
    turn = view.phase.algorithm.turn(number)
    models = _models(view, chosen, number)
    shared = known(turn, view.shared, chosen.server, number)
    scores = view.phase.score(shared, models, view.test)
    received = _received(view, chosen, number)
    return Mark(jnp.int32(number), scores, received, jnp.float32(seconds)), models


def _models(view: _View, chosen: Progress, number: int) -> Models:
    algorithm, examples = view.phase.algorithm, view.examples
    return personalised(algorithm, view.shared, chosen, examples, number=number)


def _received(view: _View, chosen: Progress, number: int) -> jax.Array:
    """Bytes that each of the phase's clients receives to have its model."""
    clients, algorithm = view.num_clients, view.phase.algorithm
    return model_bytes(algorithm, chosen, clients=clients, number=number)


def due_slots(
    phase: Phase, history: list[dict[str, Any]], *, clients: int, final_bytes: int
) -> list[int]:
    """The slots that the last round of the history fills.

    Args:
      phase: its marks and budget.
      history: one record per round.
      clients: the number of all clients.
      final_bytes: what all of them would receive to have their models then.
    """
    due = [len(history)] if len(history) in phase.marks else []
    if phase.budget is None:
        return due
    sent = [line["bytes_up"] + line["bytes_down"] for line in history]
    steps = [line["steps"] / clients for line in history]
    spent = sum(sent) + final_bytes, sum(steps)
    last = sent[-1], steps[-1]
    ends = zip(_ENDS, phase.budget, spent, last, strict=True)
    return due + [slot for slot, limit, now, more in ends if now <= limit < now + more]


def name_left_out(history: list[dict[str, Any]], cell: Cell, store: Store) -> None:
    """Warn of every client that is left out now and was not in the round before."""
    before = set(history[-2]["left_out"]) if len(history) > 1 else set()
    for client in sorted(set(history[-1]["left_out"]) - before):
        store.warn(
            f"{cell.name} {history[-1]['phase']}: client {client} is left out from "
            f"round {history[-1]['round']} on, while its update is not finite"
        )


def record_of(
    cell: Cell, phase: str, number: int, report: Report, clients: int
) -> dict[str, Any]:
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
        "steps": losses.size,
        "left_out": [int(client) for client in left_out],
        "bytes_up": sum(map(int, report.bytes_up)),
        "bytes_down": sum(map(int, report.bytes_down)) + announced,
    }


def until(outcome: Outcome, number: int) -> Outcome:
    """A phase as it was after one of the rounds whose models are kept."""
    if number == len(outcome.history):
        return outcome
    return account_until(outcome, number)._replace(models=outcome.kept[number])


def account_until(outcome: Outcome, number: int) -> Outcome:
    """A phase's last models, with its account as it was after some marked round."""
    mark = outcome.marks[number]
    return outcome._replace(
        history=outcome.history[:number],
        final_bytes=sum(map(int, mark.received)),
        seconds=float(mark.seconds),
    )
