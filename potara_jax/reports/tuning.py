"""The report of a search for step sizes.

`results["trials"]` has the mean score of every trial on held-out examples, and
`results["best"]` the best trial of every algorithm that has one that did not diverge.
"""

from __future__ import annotations

from pathlib import Path

from potara_jax.reports.document import Cell, Group, Report, Row, Section, Table, Text
from potara_jax.reports.formats import Metric, made_with, metric_of
from potara_jax.reports.summary import Record, Results

_EXPLANATION = (
    "A trial is scored on held-out examples, mean over clients, after as many rounds "
    "as Potara federates. The best trial of each algorithm is bold."
)


def report(results: Results, folder: Path) -> Report:
    """The report of a search; it has no figures, so `folder` stays empty."""
    del folder
    return Report(
        title=f"Step sizes: {results['experiment']}",
        lead=at_an_end(results),
        sections=[Section("Trials", (Text(_EXPLANATION), table(results)))],
        settings=results["settings"],
        made_with=made_with(results),
    )


def at_an_end(results: Results) -> list[str]:
    """A sentence that names the algorithms whose best trial is the first or last."""
    tried: dict[str, list[Record]] = {}
    for trial in results["trials"]:
        tried.setdefault(trial["algorithm"], []).append(trial["trial"])
    names = [
        name
        for name, best in results["best"].items()
        if best in (tried[name][0], tried[name][-1]) and len(tried[name]) > 1
    ]
    if not names:
        return []
    return [
        "At an end of what was tried, so that a better value may lie beyond it: "
        f"{', '.join(names)}."
    ]


def brief(results: Results) -> list[Table]:
    """The table for a terminal."""
    return [table(results)]


def table(results: Results) -> Table:
    """One row per trial, the best of each algorithm marked."""
    metric = metric_of(results)
    rows = [_row(trial, results["best"], metric) for trial in results["trials"]]
    columns = ("Algorithm", "Trial", f"Held-out {metric.column.lower()}")
    return Table(columns, [Group(rows)])


def _row(trial: Record, best: dict[str, Record], metric: Metric) -> Row:
    values = ", ".join(f"{name} {value:g}" for name, value in trial["trial"].items())
    score = Cell(metric.text(trial["mean"]), metric.shown(trial["mean"]))
    kind = "best" if best.get(trial["algorithm"]) == trial["trial"] else ""
    return Row((trial["algorithm"], values, score), kind)
