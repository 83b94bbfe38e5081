"""The table of methods: both parents, every merge, and the oracles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from potara_jax import reports
from potara_jax.experiment import federating, trials
from potara_jax.experiment.cell import run_cell
from potara_jax.experiment.context import Context
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.methods import KEPT
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.rows import Row
from potara_jax.jobs.job import Record, best_line
from potara_jax.reports import document
from potara_jax.reports.clients import clients_csv
from potara_jax.reports.document import Report
from potara_jax.runs.store import Memory, Store


@dataclasses.dataclass(frozen=True)
class Table:
    """Federate, train locally, and merge in every way: a table of methods."""

    name: ClassVar[str] = "run"
    presets: ClassVar[Mapping[str, Any]] = {}

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` if the federated model has no ranks of clients."""
        federating.check_ranks(experiment)

    def check_problem(self, experiment: Experiment, problem: Problem) -> None:
        """Raise `ValueError` if the federated model or a row cannot be merged."""
        federating.check_mergeable(experiment, problem)
        trials.check_methods(experiment, problem)

    def rounds(self, experiment: Experiment) -> int:
        """The federated rounds, and the local ones twice."""
        settings = experiment.federated
        federated = max(settings.rounds, settings.longer_rounds)
        return federated + 2 * experiment.local.rounds

    def run_cell(self, at: Context) -> Record:
        """Run a cell, and keep the models of its methods."""
        rows, record = run_cell(at)
        _keep_models(at, rows)
        return record

    def summary(self, at: Context, record: Record) -> str:
        """The best method."""
        return best_line(at, record["methods"])

    def results(self, records: list[Record]) -> Record:
        """All rows, diagnostics and answers."""
        return table_results(records)

    def files(self, results: Record) -> Mapping[str, str]:
        """Every client's results."""
        return {"clients.csv": clients_csv(results)}

    def tables(self, results: Record, store: Store) -> list[document.Table]:
        """What a terminal shows."""
        return reports.methods.brief(results)

    def report(self, results: Record, store: Store, figures: Path) -> Report:
        """The table, its figures, and how certain the weights are."""
        return reports.methods.report(results, figures)


def table_results(records: list[Record]) -> Record:
    """The rows, diagnostics and answers of all cells."""
    return {
        "methods": [row for record in records for row in record["methods"]],
        "diagnostics": [record["diagnostics"] for record in records],
        "written": [row for record in records for row in record.get("written", ())],
    }


def _keep_models(at: Context, rows: list[Row]) -> None:
    """On disk, keep the models that can be exported; in memory, all of them."""
    everything = isinstance(at.store, Memory)
    for row in rows:
        exists = isinstance(row.models, dict) and not row.oracle
        if exists and (everything or row.name in KEPT):
            at.store.keep_adapters(at.cell, row.name, row.models)
