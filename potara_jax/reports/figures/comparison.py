"""A comparison: scores at equal budgets, against bytes, and with other parents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from potara_jax.reports import drawing
from potara_jax.reports.drawing import Drawing
from potara_jax.reports.figures import scores as method_scores
from potara_jax.reports.formats import Metric, metric_of
from potara_jax.reports.summary import (
    Record,
    Results,
    by_heterogeneity,
    mean_of,
    ranked,
)

# --- Scores at equal budgets ---------------------------------------------------------


def scores(metric: Metric) -> Drawing:
    """Algorithms, pipelines and Potara, the best at the first panel on top."""
    return Drawing(
        draw_scores,
        metric.name.capitalize(),
        f"Each client is tested on its own distribution; a method's {metric.name} is "
        "the mean over clients after it has spent no more than Potara core (except "
        "for *). Small dots are seeds, the large marker is their mean, and the bar "
        "extends one standard deviation to each side. Of the merges only Potara's are "
        "shown; all are in the table.",
    )


def draw_scores(results: Results) -> Figure | None:
    """As a run's figure, without merges other than Potara's."""
    order = list(dict.fromkeys(summary.method for summary in ranked(results)))
    chosen = results["diagnostics"][0]["segment"]["chosen"]
    shown = [
        record
        for record in results["methods"]
        if record["kind"] not in _OF_PARENTS or record["method"] in chosen
    ]
    shown.sort(key=lambda record: order.index(record["method"]))
    over = {record["method"] for record in shown if record["over"]}
    named = [r | {"method": r["method"] + " *" * (r["method"] in over)} for r in shown]
    return method_scores.draw(results | {"methods": named})


# --- Other parents -------------------------------------------------------------------

Series = dict[str, dict[str, float]]
ALONE = "alone"
_OF_PARENTS = ("merge", "exchanged", "corrected")  # kinds of rows made of models
_SERIES = ("#7a7a7a", "#0072b2", "#d55e00")


def draw_parents(results: Results) -> Figure | None:
    """Every algorithm, and Potara with its model as the federated one."""
    panes = {name: parents(results, name) for name in by_heterogeneity(results)}
    names = list(dict.fromkeys(n for each in panes.values() for n in each[ALONE]))
    if not names:
        return None
    title = "What Potara makes of every algorithm's model, after the same rounds"
    height = 0.9 + 0.24 * len(names)
    figure, panels = drawing.panels(list(panes), height=height, title=title)
    entries: dict[str, Artist] = {}
    for axes, series in zip(panels, panes.values(), strict=True):
        entries |= _dots(axes, series, names, metric_of(results))
    drawing.name_rows(panels[0], names)
    drawing.name_axes(panels, x=metric_of(results).axis, y="")
    drawing.legend(figure, entries)
    return figure


def _dots(
    axes: Axes, series: Series, names: list[str], metric: Metric
) -> dict[str, Artist]:
    entries: dict[str, Artist] = {}
    for number, (weighing, means) in enumerate(series.items()):
        places = [names.index(name) for name in means]
        values = [metric.shown(mean) for mean in means.values()]
        (entries[weighing],) = axes.plot(
            *(values, places, "o"), color=_SERIES[number % len(_SERIES)], markersize=5
        )
    axes.grid(axis="y", visible=False)
    return entries


def parents(results: Results, heterogeneity: str) -> Series:
    """`{"alone" or a merge weight: {algorithm: mean}}` of what was merged."""
    methods = by_heterogeneity(results)[heterogeneity]
    last, series = results["settings"]["federated.rounds"], Series({ALONE: {}})
    for records in methods.values():
        if records[0]["kind"] == "exchanged":
            weighing, parent = records[0]["weighing"], records[0]["parent"]
            merged = mean_of([record["mean"] for record in records])
            series.setdefault(weighing, {})[parent] = merged
            points = [point for r in methods[parent] for point in r["curve"]]
            alone = mean_of([p["mean"] for p in points if p["round"] == last])
            series[ALONE][parent] = alone
    return series


PARENTS = Drawing(
    draw_parents,
    "Other parents",
    "Grey: an algorithm's model after as many rounds as Potara federates. In colour: "
    "that model merged with the local one, which costs local steps but no bytes.",
)


# --- Against bytes -------------------------------------------------------------------

_GROUPS = {
    "one model for all": "#7a7a7a",
    "a model for each": "#0072b2",
    "merged or tuned at the end": "#d55e00",
}


class Path(NamedTuple):
    """A method's scores as it communicates: megabytes, scores as shown, colour."""

    megabytes: np.ndarray
    scores: np.ndarray
    colour: str


def by_bytes(metric: Metric) -> Drawing:
    """Every method's scores by the bytes of all clients."""
    side = "down" if metric.is_loss else "up"
    return Drawing(
        draw_bytes,
        f"{metric.name.capitalize()} against bytes",
        f"Every method after some of its rounds: {side} and to the left is better, and "
        "where two lines cross one overtakes the other. Methods that communicate "
        "nothing are only in the table.",
    )


def draw_bytes(results: Results) -> Figure | None:
    """One line per method, named at its end."""
    panes = {name: paths(results, name) for name in by_heterogeneity(results)}
    if not any(line.scores.size for each in panes.values() for line in each.values()):
        return None
    metric = metric_of(results)
    title = f"{metric.name.capitalize()} against bytes communicated"
    figure, panels = drawing.panels(
        list(panes), height=6.0, title=f"{title}, all clients, up and down"
    )
    for axes, each in zip(panels, panes.values(), strict=True):
        for x, y, colour in each.values():
            axes.plot(x, y, ".-", color=colour, linewidth=0.9, alpha=0.7)
        _name_ends(axes, each)
    drawing.log_axis(panels[0], "x", subs=(1, 2, 5))
    drawing.name_axes(panels, x="communicated [MB]", y=metric.axis)
    entries = {
        name: Line2D([], [], color=colour, marker=".")
        for name, colour in _GROUPS.items()
    }
    drawing.legend(figure, entries)
    return figure


def paths(results: Results, heterogeneity: str) -> dict[str, Path]:
    """The paths of algorithms, and of what is merged or tuned on the way."""
    shared, personal, late = _GROUPS.values()
    methods, metric = by_heterogeneity(results)[heterogeneity], metric_of(results)
    lines = {
        name: _path(
            [r["curve"] for r in records],
            metric,
            personal if records[0]["personal"] else shared,
        )
        for name, records in methods.items()
        if records[0]["curve"] and records[0]["bytes_down"]
    }
    merged = {
        name: _path(curves, metric, late)
        for name, curves in _on_the_way(results, heterogeneity).items()
        if name not in lines
    }
    return lines | merged


def _on_the_way(results: Results, heterogeneity: str) -> dict[str, list[list[Record]]]:
    """Merges and fine-tuning after some rounds, by method: one curve per seed."""
    curves: dict[str, list[list[Record]]] = {}
    for entry in results["diagnostics"]:
        if entry["heterogeneity"] == heterogeneity:
            points = sorted(entry["communication"], key=lambda p: p["round"])
            for name in dict.fromkeys(point["method"] for point in points):
                curve = [point for point in points if point["method"] == name]
                curves.setdefault(name, []).append(curve)
    return curves


def _path(curves: list[list[Record]], metric: Metric, colour: str) -> Path:
    """Its points but for those where the models of a seed have diverged."""
    mean = lambda key: np.mean([[p[key] for p in curve] for curve in curves], 0)
    score = metric.shown(mean("mean"))
    known = np.isfinite(score)
    return Path(mean("bytes")[known] / 1e6, score[known], colour)


def _name_ends(axes: Axes, lines: dict[str, Path]) -> None:
    """Names right of the panel, in the order of the lines' ends, none over another."""
    seen = {name: line for name, line in lines.items() if line.scores.size}
    ends = [(y[-1], x[-1], name, colour) for name, (x, y, colour) in seen.items()]
    ends.sort(reverse=True)
    low, high = axes.get_ylim()
    shares = [(score - low) / (high - low) for score, *_ in ends]
    for (score, megabytes, name, colour), height in zip(
        ends, apart(shares), strict=True
    ):
        _name_end(axes, name, (megabytes, score), height, colour)


def apart(heights: Sequence[float], *, gap: float = 1 / 45) -> list[float]:
    """The nearest places in [0, 1], from the top down, at least a gap apart.

    Least squares: with `u_n = place_n + n gap` that is isotonic regression, by pooling
    neighbours whose order is wrong.

    Args:
      heights: in descending order.
      gap: between neighbours, less where there is no room for it.
    """
    last = len(heights) - 1
    gap = min(gap, 1 / max(last, 1))
    pools: list[list[float]] = []
    for n, height in enumerate(heights):
        pools.append([height + n * gap])
        while len(pools) > 1 and np.mean(pools[-2]) < np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    pooled = [float(np.mean(pool)) for pool in pools for _ in pool]
    return [min(max(u, last * gap), 1.0) - n * gap for n, u in enumerate(pooled)]


def _name_end(
    axes: Axes, name: str, end: Sequence[float], height: float, colour: str
) -> None:
    axes.annotate(
        name,
        (end[0], end[1]),
        xytext=(1.01, height),
        textcoords="axes fraction",
        fontsize=7,
        color=colour,
        va="center",
        annotation_clip=False,
        arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.3, "alpha": 0.5},
    )
