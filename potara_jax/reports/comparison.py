"""A comparison of algorithms and merges: its table, figures and page.

It reads `results`, the dictionary of `results.json`. Its `methods` are records as those
of a run, and have besides: `equal_bytes` and `equal_steps`, the accuracy where a method
has spent as many bytes, or local steps, as Potara (None where it cannot spend so few);
`over`, whether its row has spent more than Potara in either; `curve`, what it reached
on the way; and `kind`: an algorithm, a pipeline, a merge, Potara with another parent
(`exchanged`, named after it in brackets), a parent or a bound.
"""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich import box
from rich.table import Table
from rich.text import Text

from potara_jax.reports import drawing, figures, page
from potara_jax.reports.table import (
    ORACLES,
    Results,
    Row,
    by_heterogeneity,
    cells,
    grouped,
    label,
    over_seeds,
    percent,
    summarise,
)

COLUMNS = (
    *("Method", "Accuracy %", "Worst 10 %", "At its bytes", "At its steps"),
    *("Newcomers %", "Bytes", "Weight", "Local steps", "Parameters", "Training s"),
)
_TERMINAL = COLUMNS[:7]
_MISSING = "–"  # noqa: RUF001
OVER = "* spends more bytes or local steps than Potara core: it cannot spend so few."
BUDGETS = (
    "Accuracy: after the most rounds in which a method has spent no more bytes and no "
    "more local steps than Potara core; at its bytes, or at its steps: no more of "
    "these alone."
)


class Line(NamedTuple):
    """A method's row of the table, and what it reaches at the budgets."""

    row: Row
    equal_bytes: float | None
    equal_steps: float | None
    newcomers: float | None
    over: bool


def ranked(results: Results) -> list[Line]:
    """All lines, in each heterogeneity the most accurate first."""
    groups = by_heterogeneity(results)
    lines = [_line(row, groups) for row in summarise(results)]
    order = list(groups)
    return sorted(
        lines, key=lambda line: (order.index(line.row.heterogeneity), -line.row.mean)
    )


def _line(row: Row, groups) -> Line:
    records = groups[row.heterogeneity][row.method]
    each = ("equal_bytes", "equal_steps", "newcomers")
    over = any(record["over"] for record in records)
    return Line(row, *(_mean(records, name) for name in each), over)


def _mean(records, name: str) -> float | None:
    values = [record.get(name) for record in records]
    return None if any(v is None for v in values) else float(np.mean(values))


def texts(line: Line) -> dict[str, str]:
    """A line's text by column."""
    text = cells(line.row)
    shown = lambda value: _MISSING if value is None else percent(value)
    return text | {
        "Method": text["Method"] + " *" * line.over,
        "At its bytes": shown(line.equal_bytes),
        "At its steps": shown(line.equal_steps),
        "Newcomers %": shown(line.newcomers),
    }


def columns(lines: list[Line], names: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that say anything."""
    some = any(line.newcomers is not None for line in lines)
    return tuple(name for name in names if some or name != "Newcomers %")


def terminal_table(results: Results) -> Table:
    """The table for a terminal, the most accurate first; the best is bold."""
    lines = ranked(results)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    rows = [line.row for line in lines]
    table.title = f"Accuracy over clients: {over_seeds(rows)}"
    table.caption = "\n".join([BUDGETS, *notes(lines)])
    table.caption_justify = "left"
    heads = columns(lines, _TERMINAL)
    table.add_column("\nMethod", overflow="fold", min_width=20)
    for name in heads[1:]:
        heading = name.replace(" ", "\n", 1) if " " in name else f"\n{name}"
        table.add_column(heading, justify="right", no_wrap=True)
    for name in grouped(rows):
        _add_section(
            table, [line for line in lines if line.row.heterogeneity == name], heads
        )
    return table


def _add_section(table: Table, lines: list[Line], heads) -> None:
    fair = [line for line in lines if not line.row.oracle and not line.over]
    table.add_row(Text(label(lines[0].row.heterogeneity), "italic"))
    for line in lines:
        best = line is (fair[0] if fair else None)
        style = "dim" if line.row.oracle else "bold" if best else ""
        text = texts(line)
        table.add_row(*(Text(text[name], style) for name in heads))
    table.add_section()


def notes(lines: list[Line]) -> list[str]:
    """What a reader must know of what occurs."""
    over = any(line.over for line in lines)
    oracles = any(line.row.oracle for line in lines)
    return [OVER] * over + [ORACLES] * oracles


# --- Figures -------------------------------------------------------------------------


def draw(results: Results, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes every figure; returns the files' paths."""
    makers = {
        "accuracy": accuracy,
        "bytes": by_bytes,
        "parents": by_parent,
        "clients": figures.clients,
    }
    return drawing.draw(makers, results, folder)


def accuracy(results: Results) -> Figure | None:
    """Algorithms, pipelines and Potara, the most accurate first at the first panel."""
    order = list(dict.fromkeys(line.row.method for line in ranked(results)))
    ours = results["diagnostics"][0]["segment"]["chosen"]
    shown = [
        record
        for record in results["methods"]
        if record["kind"] not in ("merge", "exchanged") or record["method"] in ours
    ]
    shown.sort(key=lambda record: order.index(record["method"]))
    over = {record["method"] for record in shown if record["over"]}
    named = [r | {"method": r["method"] + " *" * (r["method"] in over)} for r in shown]
    return figures.accuracy(results | {"methods": named}, parents=())


Series = dict[str, dict[str, float]]


def by_parent(results: Results) -> Figure | None:
    """Every algorithm, and Potara with its model as the federated one."""
    found = {name: _parents(results, name) for name in by_heterogeneity(results)}
    names = list(dict.fromkeys(n for each in found.values() for n in each["alone"]))
    if not names:
        return None
    title = "What Potara makes of every algorithm's model, after the same rounds"
    height = 0.9 + 0.24 * len(names)
    figure, panels = drawing.panels(list(found), height=height, title=title)
    entries: dict[str, Any] = {}
    for axes, each in zip(panels, found.values(), strict=True):
        for number, (series, means) in enumerate(each.items()):
            places = [names.index(name) for name in means]
            look = {"color": _SERIES[number % 3], "markersize": 5}
            values = [100 * mean for mean in means.values()]
            (entries[series],) = axes.plot(values, places, "o", **look)
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(names)), [drawing.plain(name) for name in names])
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    drawing.name_axes(panels, x="accuracy [%]", y="")
    drawing.legend(figure, entries)
    return figure


_SERIES = ("#7a7a7a", "#0072b2", "#d55e00")


def _parents(results: Results, heterogeneity: str) -> Series:
    """`{"alone" or a weight: {algorithm: mean}}`, of those that were merged."""
    methods = by_heterogeneity(results)[heterogeneity]
    last, found = results["settings"]["federated_rounds"], {"alone": {}}
    for method, records in methods.items():
        if records[0]["kind"] == "exchanged":
            weight, name = method.removesuffix(")").split(" (", 1)
            mean = lambda values: float(np.mean(list(values)))
            found.setdefault(weight, {})[name] = mean(r["mean"] for r in records)
            points = [p for r in methods[name] for p in r["curve"]]
            found["alone"][name] = mean(p["mean"] for p in points if p["round"] == last)
    return found


_GROUPS = {
    "one model for all": "#7a7a7a",
    "a model for each": "#0072b2",
    "merged or tuned at the end": "#d55e00",
}


def by_bytes(results: Results) -> Figure:
    """Accuracy against the bytes of all clients, at several rounds of every method."""
    paths = {name: _paths(results, name) for name in by_heterogeneity(results)}
    title = "Accuracy against bytes communicated, all clients, up and down"
    figure, panels = drawing.panels(list(paths), height=6.0, title=title)
    for axes, each in zip(panels, paths.values(), strict=True):
        for sent, reached, colour in each.values():
            axes.plot(sent, reached, ".-", color=colour, linewidth=0.9, alpha=0.7)
        _name_ends(axes, each)
    panels[0].set_xscale("log")
    panels[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].xaxis.set_minor_locator(NullLocator())
    drawing.name_axes(panels, x="communicated [MB]", y="accuracy [%]")
    stroke = lambda colour: Line2D([], [], color=colour, marker=".")
    entries = {name: stroke(colour) for name, colour in _GROUPS.items()}
    drawing.legend(figure, entries)
    return figure


Paths = dict[str, tuple[np.ndarray, np.ndarray, str]]


def _paths(results: Results, heterogeneity: str) -> Paths:
    """`{method: (MB, accuracy in %, colour)}`: algorithms, and what Potara makes."""
    one, own, late = _GROUPS.values()
    methods = by_heterogeneity(results)[heterogeneity]
    curves = {
        name: ([r["curve"] for r in records], own if records[0]["personal"] else one)
        for name, records in methods.items()
        if records[0]["curve"] and records[0]["bytes_down"]
    }
    merged = {
        name: (each, late)
        for name, each in _on_the_way(results, heterogeneity).items()
        if name not in curves
    }
    return {name: _mean_path(*v) for name, v in (curves | merged).items()}


def _on_the_way(results: Results, heterogeneity: str) -> dict[str, list]:
    """What the diagnostics know of merges and fine-tuning, a curve a seed."""
    found: dict[str, list] = {}
    for entry in results["diagnostics"]:
        if entry["heterogeneity"] == heterogeneity:
            points = sorted(entry["communication"], key=lambda p: p["round"])
            for name in dict.fromkeys(p["method"] for p in points):
                own = [p for p in points if p["method"] == name]
                found.setdefault(name, []).append(own)
    return found


def _mean_path(curves: list[list[dict]], colour: str):
    of = lambda key: np.mean([[p[key] for p in curve] for curve in curves], 0)
    return of("bytes") / 1e6, 100 * of("mean"), colour


def _name_ends(axes: Axes, paths: Paths) -> None:
    """Names right of the panel, in the order of the lines' ends, none over another."""
    ends = [(y[-1], x[-1], name, colour) for name, (x, y, colour) in paths.items()]
    low, high = axes.get_ylim()
    gap = (high - low) / 45
    place = high + gap
    for reached, sent, name, colour in sorted(ends, reverse=True):
        place = min(reached, place - gap)
        axes.annotate(
            drawing.plain(name),
            (sent, reached),
            xytext=(1.01, (place - low) / (high - low)),
            textcoords="axes fraction",
            fontsize=7,
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.3, "alpha": 0.5},
        )


# --- The page ------------------------------------------------------------------------

_CAPTIONS = {
    "accuracy": (
        "Accuracy",
        "Each client is tested on its own distribution; a method's accuracy is the "
        "mean over clients, where it has spent no more than Potara (but for *). Small "
        "dots are seeds, the large marker is their mean and the bar one standard "
        "deviation to each side. Of the merges only Potara's are shown; all are in the "
        "table.",
    ),
    "bytes": (
        "Accuracy against bytes",
        "Every method after some of its rounds: up and to the left is better, and "
        "where two lines cross one overtakes the other. Methods that communicate "
        "nothing are in the table alone.",
    ),
    "parents": (
        "Other parents",
        "Grey: an algorithm's model after as many rounds as Potara federates. In "
        "colour: that model merged with the local one, which adds local steps and no "
        "bytes.",
    ),
    "clients": (
        "Who holds what",
        "A column is a client: its number of training examples above, its classes "
        "below, darker for more examples.",
    ),
}


def render(results: Results, drawn: list[pathlib.Path]) -> str:
    """The page as HTML."""
    lines = ranked(results)
    body = [
        page.paragraphs([BUDGETS, *notes(lines), *privacy(results)], kind="note"),
        *_tables(lines),
        *(page.figure(path, *_CAPTIONS[path.stem]) for path in drawn),
    ]
    title = f"Federated algorithms: {results['experiment']}"
    settings, versions = results["settings"], results["versions"]
    return page.document(title, "\n".join(body), settings, versions)


def _tables(lines: list[Line]) -> list[str]:
    parts, heads = [], columns(lines, COLUMNS)
    for name in grouped([line.row for line in lines]):
        own = [line for line in lines if line.row.heterogeneity == name]
        rows = [page.line([texts(x)[head] for head in heads]) for x in own]
        parts += [f"<h2>{label(name)}</h2>", page.table(heads, rows)]
    return parts


def privacy(results: Results) -> list[str]:
    """What the noise guarantees, in a sentence for each group of algorithms."""
    clip = results["settings"].get("privacy_clip")
    if clip is None:
        return []
    delta = results["settings"]["privacy_delta"]
    known = {name: e for name, e in results["privacy"].items() if e is not None}
    without = [name for name in results["privacy"] if name not in known]
    said = [f"{name}: epsilon {e:.3g} at delta {delta:g}." for name, e in known.items()]
    if without:
        said.append(
            "No account (the server takes more than the clients' sum): "
            f"{', '.join(without)}."
        )
    return said
