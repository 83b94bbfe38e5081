"""What all figures share: their look, their panels, and how they are written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from potara_jax.reports import document
from potara_jax.reports.formats import label
from potara_jax.runs import files

INK, FAINT = "#222222", "#707070"
DASHED = (0, (4, 3))
_DPI = 130
_SOFTWARE = "potara_jax"  # in a file's first bytes, which marks it as a report's
_HEAD = 200
_SIZE = 9  # points, of letters
_DIGIT, _SPACE = 0.64 * _SIZE, 0.4 * _SIZE  # points, of a digit and between labels
_MANY = 99  # ticks, so that no power of ten lacks one
_LOOK = {
    "font.size": _SIZE,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.parse_math": False,  # names are the user's
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
}


class Drawing(NamedTuple):
    """Draws a figure of results, or returns None if they lack its data."""

    make: Callable[[Any], Figure | None]
    title: str
    caption: str


def illustrate(
    drawings: Mapping[str, Drawing], results: Any, folder: Path
) -> list[document.Figure]:
    """Draw the figures, by the names of their files, that the results have data for.

    A file appears whole or not at all. The same results give the same bytes.

    Args:
      drawings: by the names of their files.
      results: of a run.
      folder: where the files go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = []
    with matplotlib.style.context(["default", _LOOK]):
        for name, (make, title, caption) in drawings.items():
            drawn = make(results)
            if drawn is not None:
                path = _write(drawn, folder / f"{name}.png")
                figures.append(document.Figure(path, title, caption))
    return figures


def _write(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    with files.atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": _SOFTWARE})
    return path


def remove_others(folder: Path, kept: Collection[Path]) -> None:
    """Remove the figures of earlier reports from a folder, and nothing else."""
    mark = f"Software\0{_SOFTWARE}".encode("latin-1")
    for path in sorted(folder.glob("*.png")):
        if path not in kept and mark in path.read_bytes()[:_HEAD]:
            path.unlink()


# --- Panels --------------------------------------------------------------------------


def panels(
    heterogeneities: Sequence[str], *, height: float, title: str
) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per heterogeneity, up to three in a row, on one scale."""
    number = len(heterogeneities)
    across = min(number, 3)
    down = math.ceil(number / across)
    figure = _figure((0, 7, 9.5, 12)[across], height * down + 0.9, title)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(w_pad=0.11)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[number:]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, heterogeneities, strict=False):
        axes.set_title(label(name))
        axes.tick_params(labelbottom=True)
    return figure, list(grid.flat[:number])


def columns(
    titles: Sequence[str],
    *,
    size: tuple[float, float],
    title: str = "",
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side."""
    figure = _figure(*size, title)
    grid = figure.subplots(1, len(titles), sharey=sharey, squeeze=False)[0]
    for axes, text in zip(grid, titles, strict=True):
        axes.set_title(text)
    return figure, list(grid)


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


def name_axes(panels: Sequence[Axes], *, x: str, y: str) -> None:
    """Labels below the lowest panels and left of the first column."""
    across = min(len(panels), 3)
    for index, axes in enumerate(panels):
        if index + across >= len(panels):
            axes.set_xlabel(x)
        if index % across == 0:
            axes.set_ylabel(y)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """A name for every row, the first on top."""
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.4, -0.6)


def log_axis(
    axes: Axes,
    name: Literal["x", "y"],
    *,
    subs: Sequence[float] = (1,),
    at: Sequence[float] | None = None,
) -> None:
    """A logarithmic axis with plain numbers, none over its neighbours.

    Matplotlib labels logarithmic axes with formulas, which are not parsed here.

    Args:
      axes: of the figure.
      name: of the axis.
      subs: where ticks are, times powers of ten.
      at: where ticks are in their place.
    """
    set_scale = {"x": axes.set_xscale, "y": axes.set_yscale}[name]
    set_scale("log", nonpositive="mask")
    axis = {"x": axes.xaxis, "y": axes.yaxis}[name]
    axis.set_major_locator(
        LogLocator(subs=subs, numticks=_MANY) if at is None else FixedLocator(at)
    )
    axis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x:g}" if x in _labelled(axis) else "")
    )
    axis.set_minor_locator(NullLocator())


def _labelled(axis: Axis) -> list[float]:
    """The ticks that a logarithmic axis has room to label, the roundest ones."""
    low, high = sorted(axis.get_view_interval())
    if low <= 0:  # nothing is drawn
        return []
    ticks = [float(x) for x in axis.get_majorticklocs() if low <= x <= high]
    return next(each for each in _ever_rounder(ticks) if _fit(axis, each))


def _ever_rounder(ticks: list[float]) -> Iterator[list[float]]:
    """All; then 1, 2 and 5 times powers of ten; then powers ever further apart."""
    parts = [f"{x:e}".split("e") for x in ticks]
    round_ = [(float(digits), int(power)) for digits, power in parts]
    pairs = list(zip(ticks, round_, strict=True))
    yield ticks
    yield [x for x, (digits, _) in pairs if digits in (1, 2, 5)]
    for apart in itertools.count(1):
        yield [x for x, (digits, n) in pairs if digits == 1 and n % apart == 0]


def _fit(axis: Axis, ticks: list[float]) -> bool:
    """Whether labels at these ticks leave space between them."""
    across = axis is axis.axes.xaxis
    box, dpi = axis.axes.bbox, axis.axes.figure.dpi
    length = (box.width if across else box.height) * 72 / dpi  # points
    places = length * np.log10(ticks) / np.ptp(np.log10(axis.get_view_interval()))
    widths = [len(f"{x:g}") * _DIGIT if across else _SIZE for x in ticks]
    pairs = itertools.pairwise(zip(places, widths, strict=True))
    return all(y - x > (v + w) / 2 + _SPACE for (x, v), (y, w) in pairs)


def legend(figure: Figure, entries: Mapping[str, Artist]) -> None:
    """Entries `{text: artist}` below the panels, as many in a line as fit."""
    longest = max(map(len, entries), default=0)
    across = max(1, int(figure.get_figwidth() / (0.075 * longest + 0.75)))
    lines = math.ceil(len(entries) / across)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=max(1, math.ceil(len(entries) / max(1, lines))),
    )
