"""What can be done with an experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from potara_jax.experiment.context import Context
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Problem
from potara_jax.reports import document
from potara_jax.reports.document import Report
from potara_jax.reports.formats import Metric
from potara_jax.runs.store import Cell, Store

Record = dict[str, Any]


class Job(Protocol):
    """What is done in every cell of an experiment, and with all of them.

    A job is a frozen dataclass, whose fields are its settings.
    """

    name: ClassVar[str]
    """Its name on the command line."""
    presets: ClassVar[Mapping[str, Any]]
    """Settings that every experiment has when the job starts."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for invalid settings."""

    def check_problem(self, experiment: Experiment, problem: Problem) -> None:
        """Raise `ValueError` for settings that do not suit the experiment's problem."""

    def rounds(self, experiment: Experiment) -> int:
        """Rounds of a cell."""

    def run_cell(self, at: Context) -> Record:
        """Run a cell, or the rest of it; returns its record."""

    def summary(self, at: Context, record: Record) -> str:
        """A cell in one line."""

    def results(self, records: list[Record]) -> Record:
        """All cells' records, as `results.json` has them."""

    def files(self, results: Record) -> Mapping[str, str]:
        """Texts that go into the run folder, by file name."""

    def tables(self, results: Record, store: Store) -> list[document.Table]:
        """What a terminal shows."""

    def report(self, results: Record, store: Store, figures: Path) -> Report:
        """The report, whose figures are drawn into a folder."""


def preset(experiment: Experiment, job: Job) -> Experiment:
    """The experiment with the job's presets, overridden by its own for that job."""
    return experiment.set({**job.presets, **experiment.presets.get(job.name, {})})


def cells_of(experiment: Experiment) -> list[Cell]:
    """Every heterogeneity with every seed."""
    return [Cell(*key) for key in experiment.cells.keys]


def best_line(at: Context, records: list[Record]) -> str:
    """The best method of a cell, in a line."""
    fair = [r for r in records if not r["oracle"] and math.isfinite(r["mean"])]
    if not fair:
        return f"{at.cell.name}: every method diverged"
    best = max(fair, key=lambda r: r["mean"])
    return f"{at.cell.name}: best is {best['method']} with {quantity(at, best['mean'])}"


def quantity(at: Context, score: float) -> str:
    """A score with its unit."""
    return Metric(*at.problem.task.metric).quantity(score)
