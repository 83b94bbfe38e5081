"""What all figures share: their look, their panels, and how they are written."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from potara_jax.reports.table import label

_DPI = 130
_LOOK = {
    "font.size": 9,
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


def draw(
    makers: Mapping[str, Callable[[Any], Figure | None]],
    results: Any,
    folder: pathlib.Path,
) -> list[pathlib.Path]:
    """Writes the figures that `makers`, by name, make of the results; their paths.

    A file appears whole or not at all. The same results give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.style.context(["default", _LOOK]):
        for name, make in makers.items():
            figure = make(results)
            if figure is not None:
                paths.append(_write(figure, folder / f"{name}.png"))
    return paths


def _write(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    beside = path.with_name(f".{path.name}.part")
    FigureCanvasAgg(figure)
    figure.savefig(beside, format="png", dpi=_DPI, metadata={"Software": None})
    os.replace(beside, path)
    return path


def panels(names: list[str], *, height: float, title: str) -> tuple[Figure, list]:
    """A figure with one panel a heterogeneity, three in a row at most, alike scaled."""
    across = min(len(names), 3)
    down = math.ceil(len(names) / across)
    size = ((0, 7, 9.5, 12)[across], height * down + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.11)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, names, strict=False):
        axes.set_title(label(name))
        axes.tick_params(labelbottom=True)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure, list(grid.flat[: len(names)])


def name_axes(panels: list[Axes], *, x: str, y: str) -> None:
    """Labels below the lowest panels and left of the first column."""
    across = min(len(panels), 3)
    for index, axes in enumerate(panels):
        if index + across >= len(panels):
            axes.set_xlabel(x)
        if index % across == 0:
            axes.set_ylabel(y)


def legend(figure: Figure, entries: dict[str, Any]) -> None:
    """Entries `{text: artist}` below the panels, as many in a line as fit."""
    longest = max(map(len, entries), default=0)
    across = max(1, int(figure.get_figwidth() / (0.075 * longest + 0.75)))
    lines = math.ceil(len(entries) / across)
    figure.legend(
        list(entries.values()),
        [plain(text) for text in entries],
        loc="outside lower center",
        ncols=max(1, math.ceil(len(entries) / max(1, lines))),
    )


def plain(text: str) -> str:
    """Text in which no character starts a formula."""
    return text.replace("$", r"\$")
