"""Scores against the bytes that all clients have sent and received."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from potara_jax.reports import drawing
from potara_jax.reports.drawing import Drawing
from potara_jax.reports.figures.styles import Style, line, plot, styles
from potara_jax.reports.formats import Metric, metric_of
from potara_jax.reports.summary import Record, Results, by_heterogeneity, of_seeds

Curve = tuple[np.ndarray, np.ndarray]


def draw(results: Results) -> Figure | None:
    """One line per method that communicates, a level for every other one."""
    groups, metric = of_seeds(results, "communication"), metric_of(results)
    curves = {name: _curves(seeds) for name, seeds in groups.items()}
    if not any(curves.values()):
        return None
    levels = {name: _levels(results, name) for name in groups}
    title = f"{metric.name.capitalize()} against bytes communicated"
    figure, panels = drawing.panels(
        list(groups), height=3.1, title=f"{title}, all clients, up and down"
    )
    ends = [sent.max() for each in curves.values() for sent, _ in each.values()]
    scale, unit = _unit(max(ends))
    looks = styles(results)
    for axes, name in zip(panels, groups, strict=True):
        _panel(axes, curves[name], levels[name], looks, metric, scale)
    _scale_bytes(panels[0], min(ends) / scale, max(ends) / scale)
    drawing.name_axes(panels, x=f"communicated [{unit}]", y=metric.axis)
    drawing.legend(figure, _legend(curves, levels, looks))
    return figure


def _curves(seeds: list[list[Record]]) -> dict[str, Curve]:
    """`{method: (bytes, score)}` by round, means over seeds, of methods that send."""
    rounds: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for point in (point for seed in seeds for point in seed):
        by_round = rounds.setdefault(point["method"], {})
        by_round.setdefault(point["round"], []).append((point["bytes"], point["mean"]))
    means = {
        method: np.asarray([np.mean(by_round[key], axis=0) for key in sorted(by_round)])
        for method, by_round in rounds.items()
    }
    return {method: (m[:, 0], m[:, 1]) for method, m in means.items() if m[:, 0].any()}


def _sends(record: Record) -> bool:
    return bool(record["bytes_up"] or record["bytes_down"])


def _levels(results: Results, heterogeneity: str) -> dict[str, float]:
    """`{method: score}` of methods that send nothing and are not oracles."""
    return {
        method: float(np.mean([record["mean"] for record in records]))
        for method, records in by_heterogeneity(results).get(heterogeneity, {}).items()
        if not (records[0]["oracle"] or any(map(_sends, records)))
    }


def _panel(
    axes: Axes,
    curves: dict[str, Curve],
    levels: dict[str, float],
    looks: dict[str, Style],
    metric: Metric,
    scale: float,
) -> None:
    for method, level in levels.items():
        look, height = looks[method], metric.shown(level)
        axes.axhline(height, color=look.colour, linestyle=look.line, alpha=0.8)
    for method, (sent, score) in curves.items():
        plot(axes, sent / scale, metric.shown(score), looks[method])


def _unit(largest: float) -> tuple[float, str]:
    """The decimal unit in which a number of bytes is at least one."""
    power = min(3, int(math.log10(max(largest, 1)) / 3))
    return 1000.0**power, ("B", "kB", "MB", "GB")[power]


def _scale_bytes(axes: Axes, least: float, largest: float) -> None:
    """Linear in bytes, unless one method sends ten times as much as another."""
    if largest < 10 * least:
        axes.set_xlim(0, 1.04 * largest)
    else:
        drawing.log_axis(axes, "x")


def _legend(
    curves: dict[str, dict[str, Curve]],
    levels: dict[str, dict[str, float]],
    looks: dict[str, Style],
) -> dict[str, Artist]:
    sending = dict.fromkeys(name for each in curves.values() for name in each)
    silent = dict.fromkeys(name for each in levels.values() for name in each)
    entries: dict[str, Any] = {name: line(looks[name]) for name in sending}
    for name in silent:
        text = f"{name} (no communication)"
        entries[text] = line(looks[name], marker=False)
    return entries


def communication(metric: Metric) -> Drawing:
    """The figure of a run."""
    side = "down" if metric.is_loss else "up"
    return Drawing(
        draw,
        "Communication",
        f"{metric.name.capitalize()} after some rounds against the bytes that all "
        f"clients have sent and received by then: {side} and to the left is better. "
        "Horizontal lines are methods that communicate nothing.",
    )
