"""A simulation of many clients: its table, its figures, and its page.

`results["cells"]` has a record a heterogeneity and seed: its `curve` of scores by round
and bytes, and how many clients, bytes of state and local steps there were. `speed` has
a line a round: `seconds`, `steps` and the process's `memory` in bytes.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich import box
from rich.table import Table

from potara_jax.reports import drawing, page
from potara_jax.reports.table import label

Results = dict[str, Any]
Speed = list[dict[str, Any]]
_BLUE, _RED = "#0072b2", "#d55e00"


def draw(results: Results, speed: Speed, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the figures `accuracy.png` and `speed.png` into a folder; their paths."""
    makers = {"accuracy": lambda _: _accuracy(results)}
    if speed:
        makers["speed"] = lambda _: _speed(speed)
    return drawing.draw(makers, results, folder)


def _name(cell) -> str:
    return f"{label(cell['heterogeneity'])}, seed {cell['seed']}"


def _accuracy(results: Results) -> Figure:
    cells = results["cells"]
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for cell in cells:
        rounds = [point["round"] for point in cell["curve"]]
        mean = [100 * point["mean"] for point in cell["curve"]]
        worst = [100 * point["worst_decile"] for point in cell["curve"]]
        (line,) = axes.plot(rounds, mean, marker="o", label=_name(cell))
        axes.plot(rounds, worst, marker="o", ls=":", color=line.get_color())
    axes.plot([], [], ls=":", color="grey", label="worst tenth of the clients")
    axes.set_xlim(left=0)
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.legend()
    figure.suptitle("Accuracy of the clients' models", x=0.01, ha="left", fontsize=12)
    return figure


def _speed(speed: Speed) -> Figure:
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for cell in {_where(line): line for line in speed}.values():
        own = _of(cell, speed)
        number = [line["round"] for line in own]
        pace = [line["steps"] / max(line["seconds"], 1e-9) for line in own]
        memory = [line["memory"] / 2**20 for line in own]
        style = {"marker": "o" if len(own) < 20 else ""}
        left.plot(number, pace, color=_BLUE, **style)
        right.plot(number, memory, color=_RED, **style)
    left.set_title("client-steps per second")
    right.set_title("memory of the process, MiB")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("round")
    return figure


# --- Numbers -------------------------------------------------------------------------

_COLUMNS = (
    "Federation",
    "Accuracy %",
    "Worst decile %",
    "GB sent",
    "Clients seen",
    "State MB",
    "Client-steps",
    "Steps / s",
    "Memory MB",
    "Growth %",
)


def _rows(results: Results, speed: Speed) -> list[list[str]]:
    return [_row(cell, _of(cell, speed)) for cell in results["cells"]]


def _of(cell, speed: Speed) -> Speed:
    return [line for line in speed if _where(line) == _where(cell)]


def _where(line: Mapping) -> tuple[str, int]:
    return line["heterogeneity"], line["seed"]


def _row(cell, speed: Speed) -> list[str]:
    last = cell["curve"][-1]
    return [
        _name(cell),
        f"{100 * last['mean']:.1f}",
        f"{100 * last['worst_decile']:.1f}",
        f"{last['bytes'] / 1e9:.3g}",
        f"{cell['seen']:,} of {cell['clients']:,}",
        f"{cell['state_bytes'] / 1e6:.3g}",
        f"{cell['steps']:,}",
        *_of_speed(speed),
    ]


def _of_speed(speed: Speed) -> list[str]:
    """Steps a second, memory, and its growth from the second quarter to the last."""
    if not speed:
        return ["-", "-", "-"]
    pace = np.median([line["steps"] / max(line["seconds"], 1e-9) for line in speed])
    memory = np.array([line["memory"] for line in speed]) / 1e6
    quarters = np.array_split(memory, 4)
    growth = 0.0
    if len(memory) > 3:
        early, late = (np.median(quarters[i]) for i in (1, 3))
        growth = 100 * (late / early - 1)
    return [f"{pace:,.0f}", f"{memory.max():,.0f}", f"{growth:+.1f}"]


def terminal_table(results: Results, speed: Speed) -> Table:
    """The table for a terminal, a column a federation."""
    first, *others = zip(_COLUMNS, *_rows(results, speed), strict=True)
    table = Table(*first, box=box.SIMPLE_HEAD)
    for values in others:
        table.add_row(*values)
    return table


_NOTES = (
    "Accuracy is the mean over the clients that are scored, evenly spread over all, "
    "each on its own test distribution; the worst decile is that of its worst tenth.",
    "Steps a second is the median over rounds, with keeping the round and without "
    "scoring. Memory is that of the process, with its files' pages in use; growth is "
    "from the second quarter of the rounds to the last one.",
    "State is what all clients keep between rounds, in files in the run folder, which "
    "take space once a client has been in a cohort.",
)


def render(results: Results, speed: Speed, figures: list[pathlib.Path]) -> str:
    """The report, one self-contained HTML page."""
    cell = results["cells"][0]
    lead = (
        f"{cell['algorithm']} with {cell['clients']:,} clients, {cell['cohort']:,} of "
        f"them in a round: {100 * cell['curve'][-1]['mean']:.1f} % after "
        f"{cell['curve'][-1]['round']} rounds."
    )
    titles = {"accuracy": "Accuracy by round", "speed": "Speed and memory by round"}
    captions = {
        "accuracy": "Solid: mean over the scored clients; dotted: their worst tenth.",
        "speed": "Rounds of all federations, one after the other.",
    }
    body = [
        page.paragraphs([lead], kind="lead"),
        page.table(_COLUMNS, [page.line(row) for row in _rows(results, speed)]),
        page.paragraphs(_NOTES, kind="note"),
        *(page.figure(p, titles[p.stem], captions[p.stem]) for p in figures),
    ]
    title = f"A simulation of {cell['clients']:,} clients"
    settings, versions = results["settings"], results["versions"]
    return page.document(title, "\n".join(body), settings, versions)
