"""The figure of a benchmark: a panel for everything that grows."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter

from benchmarks.measure import Line, Point
from potara_jax.reports import drawing

_HEIGHT = 3.6
_WIDE = 20
_PLAIN = FuncFormatter(lambda value, place: f"{value:g}")


def draw(lines: list[Line], folder: Path) -> list[Path]:
    """Writes `bench.png`, if any line has points; its path."""
    points = [point for line in lines for point in line.points]
    if not points:
        return []
    bench = {"bench": drawing.Drawing(_figure, "", "")}
    return [figure.path for figure in drawing.illustrate(bench, points, folder)]


def _figure(points: list[Point]) -> Figure:
    panels = list(dict.fromkeys(point.panel for point in points))
    figure = Figure(figsize=(4.6 * len(panels), _HEIGHT), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(grid, panels, strict=True):
        _panel(axes, panel, [point for point in points if point.panel == panel])
    return figure


def _panel(axes, title: str, points: list[Point]) -> None:
    for curve in dict.fromkeys(point.curve for point in points):
        values = {p.at: p.value for p in points if p.curve == curve}
        at = sorted(values)
        style = "-" if len(at) > 1 else ""
        axes.plot(at, [values[x] for x in at], ls=style, marker="o", ms=4, label=curve)
    name, _, by = title.partition(", by ")
    axes.set_title(name)
    axes.set_xlabel(by or "devices")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(_PLAIN)
    _scale(axes, [point.value for point in points])
    if len({point.curve for point in points}) > 1:
        axes.legend(fontsize=8)


def _scale(axes, values: list[float]) -> None:
    """Logarithmic if the values differ widely; otherwise from zero."""
    if max(values) > _WIDE * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.1 * max(values))
    axes.yaxis.set_major_formatter(EngFormatter() if max(values) >= 1e4 else _PLAIN)
