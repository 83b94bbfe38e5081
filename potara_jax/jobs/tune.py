"""Step sizes for every federated algorithm.

Every algorithm has six trials: learning rates of its clients, or values of another
step size if that matters more. All else is as in its paper. A trial is scored by the
clients' accuracy on held-out examples, after as many rounds as Potara federates, on a
seed that is in no table. The best trials are written to `tuned.json` in the run folder,
which an experiment may have as its `tuned`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from potara_jax.data.federation import evenly_weighted
from potara_jax.experiment import federating
from potara_jax.experiment.cell import train
from potara_jax.experiment.checks import require_one_of
from potara_jax.experiment.context import Context
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.phases import Outcome, Phase
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.rows import mean_accuracy
from potara_jax.federated import stack
from potara_jax.federated.registry import algorithms
from potara_jax.jobs.compare import possible
from potara_jax.jobs.job import Record, quantity
from potara_jax.reports import document, tuning
from potara_jax.reports.document import Report
from potara_jax.runs.store import Store

RATES = (1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2)
_OTHER = {  # if a step size of another kind matters more than the clients'
    "scaffold": ("learning_rate", (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
    "fedadam": ("rate", (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)),
    "fedyogi": ("rate", (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)),
    "pfedme": ("strength", (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)),
}


@dataclasses.dataclass(frozen=True)
class Tune:
    """Search step sizes on held-out examples, six for every algorithm."""

    algorithms: tuple[str, ...] = ()
    """Algorithms to search for, of `potara list algorithms`. Default: all."""

    name: ClassVar[str] = "tune"
    presets: ClassVar[Mapping[str, Any]] = {
        "cells.seeds": (100,),
        "cells.apart_from": (0, 1, 2),
    }

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` if an algorithm is not registered."""
        for name in self.algorithms:
            require_one_of(name, "algorithms", algorithms())

    def check_problem(self, experiment: Experiment, problem: Problem) -> None:
        """Raise `ValueError` if an algorithm needs more than the task provides."""
        for name in self.algorithms:
            federating.make_algorithm(experiment, problem.task, name)

    def names(self) -> list[str]:
        """The algorithms to search for."""
        return [name for name in self.algorithms or algorithms() if name != "local"]

    def rounds(self, experiment: Experiment) -> int:
        """Those of all trials."""
        number = sum(len(trials(name)) for name in self.names())
        return experiment.federated.rounds * number

    def run_cell(self, at: Context) -> Record:
        """Every trial of a cell, scored on held-out examples."""
        adapters = stack(at.problem.adapter(at.key_for("adapter")), clients=at.clients)
        scored = []
        for name in possible(at.experiment, at.problem, self.names()):
            for number, trial in enumerate(trials(name)):
                phase = _phase(at, name, number, trial)
                outcome = train(at, phase, adapters, at.key_for("federated"))
                mean = _heldout_accuracy(at, phase, outcome)
                scored.append({"algorithm": name, "trial": trial, "mean": mean})
        return {**at.cell._asdict(), "trials": scored}

    def summary(self, at: Context, record: Record) -> str:
        """The best trial."""
        best = max(record["trials"], key=_rank)
        if not math.isfinite(best["mean"]):
            return f"{at.cell.name}: every trial diverged"
        score = quantity(at, best["mean"])
        return f"{at.cell.name}: best is {best['algorithm']} with {score}"

    def results(self, records: list[Record]) -> Record:
        """The mean of every trial over cells, and the best of each algorithm.

        An algorithm of which every trial diverged has no best.
        """
        each = [record["trials"] for record in records]
        means = [
            first | {"mean": float(np.mean([t["mean"] for t in same]))}
            for first, same in zip(each[0], zip(*each, strict=True), strict=True)
        ]
        by_name: dict[str, list[Record]] = {}
        for trial in means:
            by_name.setdefault(trial["algorithm"], []).append(trial)
        best = {name: max(tried, key=_rank) for name, tried in by_name.items()}
        finite = {n: t["trial"] for n, t in best.items() if math.isfinite(t["mean"])}
        return {"trials": means, "best": finite}

    def files(self, results: Record) -> Mapping[str, str]:
        """The values for an experiment's `tuned`."""
        return {"tuned.json": json.dumps(results["best"], indent=1) + "\n"}

    def tables(self, results: Record, store: Store) -> list[document.Table]:
        """What a terminal shows."""
        return tuning.brief(results)

    def report(self, results: Record, store: Store, figures: Path) -> Report:
        """The trials."""
        return tuning.report(results, figures)


def trials(name: str) -> list[dict[str, float]]:
    """What is tried for an algorithm: keyword arguments of `make_algorithm`."""
    option, values = _OTHER.get(name, ("local_rate", RATES))
    return [{option: value} for value in values]


def _rank(trial: Record) -> float:
    """A trial's score; one that diverged is the worst."""
    return trial["mean"] if math.isfinite(trial["mean"]) else -math.inf


def _phase(at: Context, name: str, number: int, trial: dict[str, float]) -> Phase:
    """A trial's phase, which all cells share."""
    experiment, problem = at.experiment, at.problem

    def make() -> Phase:
        algorithm = federating.make_algorithm(experiment, problem.task, name, **trial)
        title, last = f"{name}-{number}", experiment.federated.rounds
        return federating.federated_phase(
            experiment, problem, algorithm, name=title, last=last
        )

    return at.programs.once(("trial", name, number), make)


def _heldout_accuracy(at: Context, phase: Phase, outcome: Outcome) -> float:
    test = evenly_weighted(at.federation.heldout)
    return mean_accuracy(at, phase.score(outcome.shared, outcome.models, test))
