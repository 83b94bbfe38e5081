"""A federation of many clients, with one small cohort on the device at a time.

Clients' states are memory-mapped files in the run folder; they take up space once a
client has been in a cohort. The next cohort is transferred while a round is computed.
The models of some clients are scored along the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from potara_jax import memory, reports
from potara_jax.evaluation.metrics import Scores, evaluator, worst_decile
from potara_jax.experiment import federating
from potara_jax.experiment.checks import require_at_least
from potara_jax.experiment.context import Context
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.phases import Outcome, Phase, run_phase
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.rows import largest_class_of
from potara_jax.federated import HostProgress, start_on_host
from potara_jax.federated.conditions import size
from potara_jax.jobs.job import Record, quantity
from potara_jax.reports import document
from potara_jax.reports.document import Report
from potara_jax.runs.store import Store

NAME, SPEED = "simulation", "speed"
_MARKS = 6


@dataclasses.dataclass(frozen=True)
class Simulate:
    """Federate many clients, with their states in files."""

    scored: int = 500
    """Clients whose models are scored, evenly spread over all."""

    name: ClassVar[str] = "simulate"
    presets: ClassVar[Mapping[str, Any]] = {"cells.seeds": (0,)}

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` if no client would be scored."""
        require_at_least(self, self.name, 1, "scored")
        federating.check_ranks(experiment)

    def check_problem(self, experiment: Experiment, problem: Problem) -> None:
        """Raise `ValueError` if nothing is shared, or privacy not accounted for."""
        name = experiment.federated.algorithm
        algorithm = federating.tuned_algorithm(experiment, problem.task, name)
        federating.check_shared(experiment, problem, algorithm)
        federating.check_private(experiment, algorithm)

    def rounds(self, experiment: Experiment) -> int:
        """The federated ones."""
        return experiment.federated.rounds

    def run_cell(self, at: Context) -> Record:
        """Run a simulation, or the rest of it."""
        phase = at.programs.once(NAME, lambda: _phase(at, self.scored))
        outcome = run_phase(
            phase,
            _start(at, phase, at.key_for("federated")),
            at.problem.base,
            _on_host(at),
            at.key_for("federated"),
            cell=at.cell,
            store=at.store,
            display=at.progress,
            on_round=lambda record, seconds: _add_speed(at.store, record, seconds),
        )
        return _record(at, phase, outcome)

    def summary(self, at: Context, record: Record) -> str:
        """What the clients' models reach."""
        reached = quantity(at, record["curve"][-1]["mean"])
        return f"{at.cell.name}: {record['algorithm']} reaches {reached}"

    def results(self, records: list[Record]) -> Record:
        """All cells."""
        return {"cells": records}

    def files(self, results: Record) -> Mapping[str, str]:
        """None beside the page."""
        return {}

    def tables(self, results: Record, store: Store) -> list[document.Table]:
        """What a terminal shows."""
        return reports.simulation.brief(results, speed=read_speed(store))

    def report(self, results: Record, store: Store, figures: Path) -> Report:
        """Accuracy, speed and memory by round."""
        return reports.simulation.report(results, figures, speed=read_speed(store))


# --- The rounds ----------------------------------------------------------------------


def _phase(at: Context, scored: int) -> Phase:
    """The rounds of the algorithm, in which some clients' models are scored."""
    experiment, task = at.experiment, at.problem.task
    name, last = experiment.federated.algorithm, experiment.federated.rounds
    algorithm = federating.tuned_algorithm(experiment, task, name)
    spread = np.linspace(0, at.clients - 1, min(scored, at.clients))
    phase = federating.federated_phase(
        experiment,
        at.problem,
        algorithm,
        name=NAME,
        last=last,
        marks=federating.marks_of(last, _MARKS),
    )
    score = evaluator(algorithm.predict(task), layout=at.programs.layout)
    return phase._replace(evaluate=score, clients=spread.astype(np.int32))


def _on_host(at: Context) -> Any:
    """The federation with its clients' examples on the host."""
    train = jax.tree.map(np.asarray, at.federation.train)
    return at.federation._replace(train=train)


def _start(at: Context, phase: Phase, key: jax.Array) -> HostProgress:
    return start_on_host(
        phase.algorithm,
        at.shared,
        at.problem.adapter(at.key_for("adapter")),
        _on_host(at).train,
        key,
        conditions=phase.conditions,
        wire=phase.wire,
        folder=at.store.states_folder(at.cell),
    )


# --- What it shows -------------------------------------------------------------------


def _record(at: Context, phase: Phase, outcome: Outcome) -> Record:
    states, history = outcome.progress.states, outcome.history
    states.flush()
    sent = np.cumsum([line["bytes_up"] + line["bytes_down"] for line in history])
    return {
        **at.cell._asdict(),
        "algorithm": phase.algorithm.name,
        "clients": at.clients,
        "cohort": size(phase.conditions, at.clients).cohort,
        "seen": int(states.begun.sum()),
        "state_bytes": states.nbytes,
        "steps": sum(line["steps"] for line in history),
        "seconds": outcome.seconds,
        **_largest_class(at, phase),
        "curve": [
            {"round": number, "bytes": int(sent[number - 1]), **_means(mark.scores)}
            for number, mark in outcome.marks.items()
        ],
    }


def _largest_class(at: Context, phase: Phase) -> Record:
    """What always answering with a client's largest class gives, if there are any."""
    federation = at.federation.train, at.federation.test
    scores = largest_class_of(at, *jax.tree.map(lambda x: x[phase.clients], federation))
    return {"largest_class": _means(scores)} if scores else {}


def _means(scores: Scores) -> dict[str, float]:
    accuracy = np.asarray(scores.accuracy, np.float64)
    return {"mean": float(accuracy.mean()), "worst_decile": worst_decile(accuracy)}


def _add_speed(store: Store, record: Record, seconds: float) -> None:
    """Record a round's seconds, and the memory of the process."""
    line = {name: record[name] for name in ("heterogeneity", "seed", "round", "steps")}
    line |= {"seconds": round(seconds, 4), "memory": memory.of_process()}
    store.add_line(SPEED, line)


def read_speed(store: Store) -> list[Record]:
    """The speed of every round: the last line of each."""
    lines = {
        (line["heterogeneity"], line["seed"], line["round"]): line
        for line in store.lines(SPEED)
    }
    return [lines[key] for key in sorted(lines)]
