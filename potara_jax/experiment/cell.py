"""One cell of the table: the phases, the merges, every score, and the diagnostics."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax

from potara_jax.adapters.lora import Adapter
from potara_jax.experiment import federating
from potara_jax.experiment.context import Context
from potara_jax.experiment.diagnostics import diagnostics
from potara_jax.experiment.merges import measure_all
from potara_jax.experiment.phases import Outcome, Phase, run_phase, until
from potara_jax.experiment.rows import Parents, Row, record, table_rows
from potara_jax.experiment.written import written
from potara_jax.federated import stack, start

_MARKS = 4


class ParentPhases(NamedTuple):
    """The phases that train both parents of a merge."""

    federated: Phase
    local: Phase

    @property
    def fine_tuning(self) -> Phase:
        """Local rounds from the federated model."""
        return self.local._replace(name="fine-tuning")


def run_cell(at: Context) -> tuple[list[Row], dict[str, Any]]:
    """Run a cell, or the rest of it; returns its rows and its record.

    The record is `{"methods", "diagnostics", "written"}`.
    """
    phases = at.programs.once("parents", lambda: parent_phases(at, marks=_MARKS))
    parents, longer = _train(at, phases)
    outcomes = zip(("federated", "local", "fine-tuning"), parents, strict=True)
    seconds = {name: outcome.seconds for name, outcome in outcomes}
    at.progress.log(f"{at.cell.name}: all weights")
    with _timed(seconds, "merge"):
        merges = jax.block_until_ready(measure_all(at, parents.pair))
    at.progress.log(f"{at.cell.name}: all merges, scores and answers")
    with _timed(seconds, "evaluation"):
        rows = table_rows(at, parents, merges, longer)
        cell = {
            "methods": [record(at, row) for row in rows],
            "diagnostics": diagnostics(at, phases.federated, parents, merges, rows),
            "written": written(at, rows),
        }
    cell["diagnostics"]["seconds"] = seconds
    return rows, cell


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Generator[None, None, None]:
    began = time.monotonic()
    yield
    seconds[name] = time.monotonic() - began


# --- Training ------------------------------------------------------------------------


def parent_phases(at: Context, *, marks: int = 0) -> ParentPhases:
    """The federated phase, which is scored at its marks, and the local one.

    If the federated phase goes on to `federated.longer_rounds`, its model at
    `federated.rounds` is kept.

    Args:
      at: the cell.
      marks: the number of rounds after which the federated phase is scored.
    """
    experiment, problem = at.experiment, at.problem
    settings = experiment.federated
    make = federating.make_algorithm
    algorithm = make(experiment, problem.task, settings.algorithm)
    last, longer = settings.rounds, settings.longer_rounds
    marked = federating.marks_of(last, marks)
    middle = marked[(len(marked) - 1) // 2 :][:1]
    ends = [longer] if marks and longer > last else []
    federated = federating.federated_phase(
        experiment,
        problem,
        algorithm,
        name="federated",
        last=max(last, longer),
        marks=[*marked, *ends],
        keep=[*middle, *([last] if longer > last else [])],
    )
    return ParentPhases(federated, federating.local_phase(experiment, problem))


def _train(at: Context, phases: ParentPhases) -> tuple[Parents, Outcome]:
    """The three phases, and the federated one to its last round."""
    longer, local = train_parents(at, phases)
    federated = until(longer, at.experiment.federated.rounds)
    key = at.key_for("fine-tuning")
    tuned = train(at, phases.fine_tuning, federated.models, key)
    return Parents(federated, local, tuned), longer


def train_parents(at: Context, phases: ParentPhases) -> tuple[Outcome, Outcome]:
    """Run the federated phase, maybe beyond the model to merge, and the local one."""
    run, first = partial(train, at), at.problem.adapter(at.key_for("adapter"))
    adapters = stack(first, clients=at.clients)
    federated = run(phases.federated, adapters, at.key_for("federated"))
    merged = until(federated, at.experiment.federated.rounds)
    begin = local_start(at, first, merged.models)
    return federated, run(phases.local, begin, at.key_for("local"))


def train(at: Context, phase: Phase, adapters: Adapter, key: jax.Array) -> Outcome:
    """A phase from every client's adapter; the server starts from the first one's."""
    return run_phase(
        phase,
        start(phase.algorithm, adapters, key, phase.conditions),
        at.problem.base,
        at.federation,
        key,
        cell=at.cell,
        store=at.store,
        display=at.progress,
    )


def local_start(at: Context, first: Adapter, federated: Adapter) -> Adapter:
    """Where local training starts: every client's adapter, `[C, ...]`.

    Args:
      at: the cell.
      first: the adapter that the federation starts from.
      federated: the federated ones, `[C, ...]`.
    """
    if at.experiment.local.start == "federated":
        return federated
    if at.experiment.local.start == "independent":
        keys = jax.random.split(at.key_for("independent"), at.clients)
        return jax.vmap(at.problem.adapter)(keys)
    return stack(first, clients=at.clients)
