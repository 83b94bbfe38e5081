"""The report of a comparison of algorithms and merges.

It reads `results`, the dictionary of `results.json`. Its `methods` are records as in a
run, with additional keys:

- `equal_bytes`, `equal_steps`: the score once the method has spent as many bytes, or
  local steps, as Potara; None if it cannot spend so little.
- `over`: whether the row has spent more than Potara in either.
- `curve`: scores on the way, by round, bytes and steps.
- `personal`: whether every client has its own model.
- `kind`: `algorithm`, `pipeline`, `merge`, `exchanged` (Potara with another parent),
  `corrected` (an algorithm's model, by class shares), `parent` or `bound`.
- `weighing`, `parent`: the merge weight, and the algorithm whose model was merged.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

from potara_jax.reports import clients, drawing, findings
from potara_jax.reports.diagnostics import left_out_notes
from potara_jax.reports.document import (
    Cell,
    Group,
    Report,
    Row,
    Section,
    Table,
    Text,
    figure_sections,
)
from potara_jax.reports.figures import comparison as figures
from potara_jax.reports.figures.clients import CLIENTS
from potara_jax.reports.formats import Metric, label, made_with, metric_of
from potara_jax.reports.methods import (
    BALANCED,
    NO_NOISE,
    balanced_notes,
    cells,
    class_notes,
    head,
    known_columns,
    label_prior,
    oracle_notes,
    score_cell,
)
from potara_jax.reports.summary import (
    Groups,
    Record,
    Results,
    Summary,
    by_heterogeneity,
    mean_if_known,
    over_seeds,
    ranked,
)

COLUMNS = (
    *("Method", "Score", BALANCED, "Worst 10 %", "At its bytes", "At its steps"),
    *("Newcomers", "Bytes", "Weight", "Local steps", "Parameters", "Training s"),
)
BRIEF = COLUMNS[:8]
OVER = "* spends more bytes or local steps than Potara core: it cannot spend less."


class Entry(NamedTuple):
    """A method's row of the table: its scores at Potara core's budgets.

    Attributes:
      summary: its scores.
      equal_bytes: the score with only the bytes limited.
      equal_steps: the score with only the local steps limited.
      newcomers: mean score of clients that joined late.
      over: whether the method spends more than Potara core.
    """

    summary: Summary
    equal_bytes: float | None
    equal_steps: float | None
    newcomers: float | None
    over: bool


def report(results: Results, folder: Path) -> Report:
    """The report of a comparison, with its figures written into a folder."""
    shown = drawing.illustrate(drawings(metric_of(results)), results, folder)
    explained = Text(_budgets(metric_of(results)))
    return Report(
        title=f"Federated algorithms: {results['experiment']}",
        lead=findings.unbeaten(ranked(results)),
        sections=[
            Section(
                "Methods",
                (
                    explained,
                    *map(Text, [*label_prior(results), *privacy(results)]),
                    table(results),
                ),
            ),
            *figure_sections(shown),
            *clients.sections(results),
        ],
        settings=results["settings"],
        made_with=made_with(results),
    )


def brief(results: Results) -> list[Table]:
    """The table for a terminal, where the budgets are explained below it."""
    shown = table(results, columns=BRIEF)
    explained = _budgets(metric_of(results))
    return [dataclasses.replace(shown, notes=[explained, *shown.notes])]


def drawings(metric: Metric) -> dict[str, drawing.Drawing]:
    """The figures by the names of their files."""
    return {
        metric.name: figures.scores(metric),
        "bytes": figures.by_bytes(metric),
        "parents": figures.PARENTS,
        "clients": CLIENTS,
    }


def privacy(results: Results) -> list[str]:
    """What the noise guarantees, a sentence for each group of algorithms."""
    settings = results["settings"]
    if settings.get("communication.privacy_clip") is None:
        return []
    if settings.get("communication.privacy_noise") == 0:
        return [NO_NOISE]
    delta = settings["communication.privacy_delta"]
    known = {name: e for name, e in results["privacy"].items() if e is not None}
    unknown = [name for name in results["privacy"] if name not in known]
    sentences = [
        f"{name}: epsilon {e:.3g} at delta {delta:g}." for name, e in known.items()
    ]
    if unknown:
        reason = "the server uses more than the clients' sum"
        sentences.append(f"No account, as {reason}: {', '.join(unknown)}.")
    return sentences


# --- The table -----------------------------------------------------------------------


def entries(results: Results) -> list[Entry]:
    """All entries, in each heterogeneity the best first."""
    groups = by_heterogeneity(results)
    return [_entry(summary, groups) for summary in ranked(results)]


def _entry(summary: Summary, groups: Groups) -> Entry:
    records = groups[summary.heterogeneity][summary.method]
    names = ("equal_bytes", "equal_steps", "newcomers")
    over = any(record["over"] for record in records)
    by_bytes, by_steps, newcomers = (_mean(records, name) for name in names)
    return Entry(summary, by_bytes, by_steps, newcomers, over)


def _mean(records: list[Record], name: str) -> float | None:
    return mean_if_known([record.get(name) for record in records])


def table(results: Results, *, columns: tuple[str, ...] = COLUMNS) -> Table:
    """One row per method, the best first; the best within the budget is marked."""
    metric, lines = metric_of(results), entries(results)
    if all(line.newcomers is None for line in lines):
        columns = tuple(name for name in columns if name != "Newcomers")
    summaries = [line.summary for line in lines]
    columns = known_columns(columns, summaries)
    groups: dict[str, list[Entry]] = {}
    for line in lines:
        groups.setdefault(line.summary.heterogeneity, []).append(line)
    return Table(
        [head(name, metric) for name in columns],
        [Group(_rows(group, metric, columns), label(n)) for n, group in groups.items()],
        title=f"{metric.name.capitalize()} over clients: {over_seeds(summaries)}",
        notes=[*notes(lines), *left_out_notes(results)],
    )


def _rows(group: list[Entry], metric: Metric, columns: tuple[str, ...]) -> list[Row]:
    within = [entry for entry in group if not entry.summary.oracle and not entry.over]
    fair = [entry for entry in within if math.isfinite(entry.summary.mean)]
    rows = []
    for entry in group:
        oracle, best = entry.summary.oracle, entry is next(iter(fair), None)
        by_name = entry_cells(entry, metric)
        kind = "oracle" if oracle else "best" if best else ""
        rows.append(Row([by_name[name] for name in columns], kind))
    return rows


def entry_cells(entry: Entry, metric: Metric) -> dict[str, Cell]:
    """An entry's cells by column."""
    by_name = cells(entry.summary, metric)
    return by_name | {
        "Method": Cell(by_name["Method"].text + " *" * entry.over),
        "At its bytes": score_cell(entry.equal_bytes, metric),
        "At its steps": score_cell(entry.equal_steps, metric),
        "Newcomers": score_cell(entry.newcomers, metric),
    }


def notes(lines: list[Entry]) -> list[str]:
    """Explanations of what occurs in the table."""
    over = any(line.over for line in lines)
    summaries = [line.summary for line in lines]
    explained = oracle_notes(summaries) + balanced_notes(summaries)
    return [OVER] * over + explained + class_notes(summaries)


def _budgets(metric: Metric) -> str:
    return (
        f"{metric.name.capitalize()}: after the last scored round in which a method "
        "has spent no more bytes and no more local steps than Potara core. At its "
        "bytes, at its steps: with only one of the two limited."
    )
