"""The report of a simulation of many clients.

`results["cells"]` has one record per heterogeneity and seed: its `curve` of scores by
round and bytes, and its numbers of clients, bytes of state and local steps. `speed` has
one line per round: `seconds`, `steps` and the process's `memory` in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from potara_jax.reports import drawing
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
from potara_jax.reports.figures import simulation as figures
from potara_jax.reports.formats import MISSING, Metric, made_with, metric_of, size
from potara_jax.reports.summary import Record, Results

_EXPLANATION = (
    "The scored clients are evenly spread over all of them, and each is tested on its "
    "own distribution. Worst 10 %: mean over the worst tenth of them.",
    "Steps per second are a median over rounds; the time includes saving the round and "
    "excludes scoring. Memory is that of the process, with the pages of its files in "
    "use; growth is from the second quarter of the rounds to the last.",
    "State is what all clients keep between rounds, in files in the run folder, which "
    "take up space once a client has been in a cohort.",
)


def report(results: Results, folder: Path, *, speed: Sequence[Record] = ()) -> Report:
    """The report of a simulation, with its figures written into a folder."""
    metric = metric_of(results)
    drawings = {metric.name: figures.scores(metric), "speed": figures.speed(speed)}
    shown = drawing.illustrate(drawings, results, folder)
    explained = [Text(text) for text in _EXPLANATION]
    return Report(
        title=f"A simulation of {results['cells'][0]['clients']:,} clients",
        lead=[finding(results)],
        sections=[
            Section("Federations", (table(results, speed), *explained)),
            *figure_sections(shown),
        ],
        settings=results["settings"],
        made_with=made_with(results),
    )


def brief(results: Results, *, speed: Sequence[Record] = ()) -> list[Table]:
    """The table for a terminal, one column per federation."""
    return [transposed(table(results, speed))]


def finding(results: Results) -> str:
    """The result of the first federation, in a sentence."""
    cell, metric = results["cells"][0], metric_of(results)
    last = cell["curve"][-1]
    reached = (
        f"{cell['algorithm']} with {cell['clients']:,} clients, {cell['cohort']:,} of "
        f"them in a round, reaches {metric.phrase(last['mean'])} after "
        f"{last['round']} rounds"
    )
    if "largest_class" not in cell:
        return f"{reached}."
    floor = cell["largest_class"]["mean"]
    against = "against" if last["mean"] > floor else "which does not beat the"
    return (
        f"{reached}, {against} {metric.quantity(floor)} of always answering with a "
        "client's largest class."
    )


def table(results: Results, speed: Sequence[Record] = ()) -> Table:
    """One row per federation."""
    metric = metric_of(results)
    columns = (
        *("Federation", metric.column, "Worst 10 %"),
        *("Bytes", "Clients seen", "State", "Client-steps"),
        *("Steps / s", "Memory", "Growth %"),
    )
    rows = [_row(cell, speed, metric) for cell in results["cells"]]
    if "largest_class" in results["cells"][0]:
        columns = (*columns[:3], "Largest class %", *columns[3:])
    return Table(columns, [Group(rows)])


def transposed(table: Table) -> Table:
    """One column per row, for a narrow terminal."""
    (rows, _), *_ = table.groups
    first, *others = zip(table.columns, *(row.texts for row in rows), strict=True)
    return Table(first, [Group([Row(cells) for cells in others])])


def _row(cell: Record, speed: Sequence[Record], metric: Metric) -> Row:
    last, place = cell["curve"][-1], (cell["heterogeneity"], cell["seed"])
    lines = [line for line in speed if (line["heterogeneity"], line["seed"]) == place]
    score = lambda name: Cell(metric.text(last[name]), metric.shown(last[name]))
    return Row(
        (
            figures.name_of(cell),
            score("mean"),
            score("worst_decile"),
            *_floor(cell, metric),
            Cell(size(last["bytes"]), last["bytes"]),
            Cell(f"{cell['seen']:,} of {cell['clients']:,}", cell["seen"]),
            Cell(size(cell["state_bytes"]), cell["state_bytes"]),
            Cell(f"{cell['steps']:,}", cell["steps"]),
            *_speed_cells(lines),
        )
    )


def _floor(cell: Record, metric: Metric) -> list[Cell]:
    """The score of always answering with a client's largest class, if there is one."""
    means = [cell["largest_class"]["mean"]] if "largest_class" in cell else []
    return [Cell(metric.text(mean), metric.shown(mean)) for mean in means]


def _speed_cells(lines: Sequence[Record]) -> list[Cell]:
    """Steps per second, memory, and its growth."""
    if not lines:
        return [Cell(MISSING)] * 3
    each = [line["steps"] / max(line["seconds"], 1e-9) for line in lines]
    pace, memory = float(np.median(each)), np.array([x["memory"] for x in lines])
    growth, peak = _growth(memory), float(memory.max())
    return [
        Cell(f"{pace:,.0f}", pace),
        Cell(size(peak), peak),
        Cell(f"{growth:+.1f}", growth),
    ]


def _growth(memory: np.ndarray) -> float:
    """In percent, from the second quarter of the rounds to the last."""
    if len(memory) < 4:
        return 0.0
    _, early, _, late = map(np.median, np.array_split(memory, 4))
    return float(100 * (late / early - 1))
