"""What can be done with an experiment: a table, a comparison, a study of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from potara_jax.experiment import cell as table_cell
from potara_jax.experiment import programs
from potara_jax.experiment.settings import Settings
from potara_jax.jobs import compare, simulate, study, tune
from potara_jax.reports import (
    answers,
    comparison,
    figures,
    report,
    simulation,
    study_report,
    table,
)
from potara_jax.runs import files
from potara_jax.runs.store import Cell, Store


class Job(NamedTuple):
    """What the runner does in every cell, and with all of them.

    `programs(settings, problem)`; `cell(...)` gives a cell's record; `rounds(settings)`
    of a cell; `summary(cell, record)` in one line; `results(records)` is what goes into
    `results.json`; `report(store, results, console)` writes and shows what it can, and
    returns the path to look at.
    """

    programs: Callable[..., Any]
    cell: Callable[..., dict]
    rounds: Callable[[Settings], int]
    summary: Callable[[Cell, dict], str]
    results: Callable[[list[dict]], dict]
    report: Callable[[Store, dict, Console], Path]


# --- The table of methods ------------------------------------------------------------


def _table_rounds(settings: Settings) -> int:
    federated = max(settings.federated_rounds, settings.longer_rounds)
    return federated + 2 * settings.local_rounds


def _table_summary(cell: Cell, record: dict) -> str:
    best = max(
        (m for m in record["methods"] if not m["oracle"]), key=lambda m: m["mean"]
    )
    return f"{cell.name}: best is {best['method']} with {100 * best['mean']:.1f} %"


def _table_results(records: list[dict]) -> dict:
    return {
        "methods": [row for record in records for row in record["methods"]],
        "diagnostics": [record["diagnostics"] for record in records],
        "written": [row for record in records for row in record.get("written", ())],
    }


def _table_report(store: Store, results: dict, console: Console) -> Path:
    """Whatever can be made of the results, made anew."""
    files.write_text(store.path / "clients.csv", table.clients_csv(results))
    drawn = figures.draw(results, store.path / "figures")
    files.write_text(store.path / "report.html", report.render(results, drawn))
    console.print(table.terminal_table(table.summarise(results)))
    if results.get("written"):
        console.print(answers.terminal_table(results))
    return store.path / "report.html"


TABLE = Job(
    programs.make_programs,
    table_cell.run_cell,
    _table_rounds,
    _table_summary,
    _table_results,
    _table_report,
)


# --- The comparison of algorithms ----------------------------------------------------


def _compare_report(store: Store, results: dict, console: Console) -> Path:
    files.write_text(store.path / "clients.csv", table.clients_csv(results))
    drawn = comparison.draw(results, store.path / "figures")
    files.write_text(store.path / "report.html", comparison.render(results, drawn))
    console.print(comparison.terminal_table(results))
    return store.path / "report.html"


COMPARE = Job(
    compare.make_programs,
    compare.run_cell,
    compare.number_of_rounds,
    _table_summary,
    lambda records: _table_results(records) | {"privacy": records[0]["privacy"]},
    _compare_report,
)


# --- The search for hyper-parameters -------------------------------------------------


def _tune_summary(cell: Cell, record: dict) -> str:
    best = max(record["trials"], key=lambda trial: trial["mean"])
    return f"{cell.name}: best is {best['algorithm']} with {100 * best['mean']:.1f} %"


def _tune_report(store: Store, results: dict, console: Console) -> Path:
    files.write_json(store.path / "tuned.json", results["best"])
    shown = Table("Algorithm", "Trial", "Held-out accuracy %", box=SIMPLE_HEAD)
    for trial in results["trials"]:
        name, how = trial["algorithm"], trial["trial"]
        best = "bold" if results["best"][name] == how else ""
        said = ", ".join(f"{key} {value:g}" for key, value in how.items())
        shown.add_row(name, said, f"{100 * trial['mean']:.1f}", style=best)
    console.print(shown)
    return store.path / "tuned.json"


TUNE = Job(
    tune.make_programs,
    tune.run_cell,
    tune.number_of_rounds,
    _tune_summary,
    tune.results,
    _tune_report,
)


# --- Simulations of many clients -----------------------------------------------------


def _simulate_summary(cell: Cell, record: dict) -> str:
    accuracy = 100 * record["curve"][-1]["mean"]
    return f"{cell.name}: {record['algorithm']} reaches {accuracy:.1f} %"


def _simulate_report(store: Store, results: dict, console: Console) -> Path:
    speed = simulate.read_speed(store.path)
    drawn = simulation.draw(results, speed, store.path / "figures")
    page = simulation.render(results, speed, drawn)
    files.write_text(store.path / "report.html", page)
    console.print(simulation.terminal_table(results, speed))
    return store.path / "report.html"


SIMULATE = Job(
    simulate.make_programs,
    simulate.run_cell,
    simulate.number_of_rounds,
    _simulate_summary,
    lambda records: {"cells": records},
    _simulate_report,
)


# --- The study of weights ------------------------------------------------------------


def _study_rounds(settings: Settings) -> int:
    return settings.federated_rounds + settings.local_rounds


def _study_summary(cell: Cell, record: dict) -> str:
    parents, best = (record["federated"], record["local"]), record["best_constant"]
    better = 100 * (best - max(parents))
    return f"{cell.name}: the best constant weight beats both models by {better:.1f}"


def _study_report(store: Store, results: dict, console: Console) -> Path:
    files.write_text(store.path / "study.csv", study_report.csv_text(results))
    drawn = study_report.draw(results, store.path / "figures")
    files.write_text(store.path / "report.html", study_report.render(results, drawn))
    console.print(study_report.terminal_table(results))
    return store.path / "report.html"


STUDY = Job(
    study.make_programs,
    study.run_cell,
    _study_rounds,
    _study_summary,
    lambda records: {"cells": records},
    _study_report,
)
