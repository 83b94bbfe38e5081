"""Every method's score."""

from __future__ import annotations

from functools import partial

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from potara_jax.reports import drawing
from potara_jax.reports.drawing import DASHED, FAINT, INK, Drawing
from potara_jax.reports.figures.styles import Style, dot, stroke, styles
from potara_jax.reports.formats import Metric, metric_of
from potara_jax.reports.summary import (
    PARENTS,
    Record,
    Results,
    by_heterogeneity,
    mean_if_known,
)

_CROSSES = (
    "A cross is the accuracy with equal shares of each client's classes, where there "
    "are any."
)


def scores(metric: Metric) -> Drawing:
    """The figure of a run, with the better parent as a line."""
    side = "left" if metric.is_loss else "right"
    caption = (
        f"Each client is tested on its own distribution; a method's {metric.name} is "
        "the mean over clients. Small dots are seeds, the large marker is their mean, "
        "and the bar extends one standard deviation to each side. A method that gains "
        f"from both models lies to the {side} of the dashed line, which is the better "
        "of the federated and the local model. Hollow markers are oracles."
    )
    caption += f" {_CROSSES}" * metric.percent
    return Drawing(partial(draw, parents=PARENTS), metric.name.capitalize(), caption)


def draw(results: Results, *, parents: tuple[str, ...] = ()) -> Figure | None:
    """Dots for seeds, a marker for their mean.

    Args:
      results: of a run.
      parents: methods the better of which is shown as a line.
    """
    groups, metric = by_heterogeneity(results), metric_of(results)
    if not groups:
        return None
    looks = styles(results)
    names = list(dict.fromkeys(name for methods in groups.values() for name in methods))
    title = f"{metric.name.capitalize()} on each client's own test distribution"
    figure, panels = drawing.panels(
        list(groups),
        height=0.9 + 0.27 * len(names),
        title=f"{title}, mean over clients",
    )
    for axes, methods in zip(panels, groups.values(), strict=True):
        for name, records in methods.items():
            _row(axes, names.index(name), records, looks[name], metric)
        _better_parent(axes, methods, parents, metric)
        axes.grid(axis="y", visible=False)
    drawing.name_rows(panels[0], names)
    drawing.name_axes(panels, x=metric.axis, y="")
    drawing.legend(figure, _legend(results, parents))
    return figure


def _row(
    axes: Axes, place: int, records: list[Record], look: Style, metric: Metric
) -> None:
    each = np.asarray([record["mean"] for record in records])
    values = metric.shown(each)
    mean, oracle = values.mean(), records[0]["oracle"]
    if len(values) > 1:
        half = values.std(ddof=1)
        ends = [mean - half, mean + half]
        axes.plot(ends, [place, place], color=look.colour, alpha=0.35, linewidth=4)
        dots = np.full(len(values), place)
        axes.plot(values, dots, ".", color=look.colour, markersize=4, alpha=0.8)
    face = "white" if oracle else look.colour
    axes.plot(mean, place, "o", markersize=7, color=look.colour, markerfacecolor=face)
    balanced = mean_if_known([record.get("balanced_mean") for record in records])
    if balanced is not None:
        axes.plot(metric.shown(balanced), place, "x", markersize=5, color=look.colour)
    at_the_edge = axes.get_yaxis_transform()
    text = metric.text(float(each.mean()))
    axes.text(
        *(1.01, place, text), transform=at_the_edge, va="center", color=INK, fontsize=8
    )


def _better_parent(
    axes: Axes,
    methods: dict[str, list[Record]],
    parents: tuple[str, ...],
    metric: Metric,
) -> None:
    if parents and set(parents) <= set(methods):
        means = (np.mean([r["mean"] for r in methods[name]]) for name in parents)
        better = metric.shown(max(means))
        axes.axvline(better, color=FAINT, linewidth=1, linestyle=DASHED, zorder=1)


def _legend(results: Results, parents: tuple[str, ...]) -> dict[str, Artist]:
    """What the marks mean, of those that occur."""
    records = results["methods"]
    several = len({record["seed"] for record in records}) > 1
    oracles = any(record["oracle"] for record in records)
    names = {record["method"] for record in records}
    both = bool(parents) and set(parents) <= names
    balanced = any("balanced_mean" in record for record in records)
    entries = {
        "mean over seeds" if several else "the only seed": (dot(7), True),
        "one seed": (dot(3), several),
        "± standard deviation": (stroke(FAINT, width=4, alpha=0.35), several),
        "equal shares of each client's classes": (dot(5, marker="x"), balanced),
        "oracle: looks at the test data": (dot(7, face="white"), oracles),
        "better of federated and local": (stroke(FAINT, width=1, dashes=DASHED), both),
    }
    return {text: artist for text, (artist, occurs) in entries.items() if occurs}
