"""How methods look in every figure, and the marks of legends."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from potara_jax.reports.drawing import FAINT
from potara_jax.reports.summary import PARENTS, Results

_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7"),
    *("#e69f00", "#56b4e9", "#882255"),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)))
_MARKER_SIZE = 4.5


class Style(NamedTuple):
    """A method's look: colour, marker and dashes."""

    colour: tuple[float, float, float]
    marker: str
    line: Any


def styles(results: Results) -> dict[str, Style]:
    """A look for every method in the results.

    Methods of the diagnostics get the clearest looks, because they share panels, while
    most others have a labelled row.
    """
    names = [record["method"] for record in results["methods"]]
    parents = [name for name in PARENTS if name in names]
    order = dict.fromkeys([*_sharing_panels(results), *parents, *names])
    return {name: _style(number) for number, name in enumerate(order)}


def _style(number: int) -> Style:
    """The colours in turn, darker the second time and paler the third."""
    turn, place = divmod(number, len(_COLOURS))
    towards, share = ((0, 0.0), (0, 0.45), (1, 0.45))[turn % 3]
    red, green, blue = (
        (1 - share) * part + share * towards for part in to_rgb(_COLOURS[place])
    )
    marker = _MARKERS[number % len(_MARKERS)]
    return Style((red, green, blue), marker, _LINES[turn % 3])


def _sharing_panels(results: Results) -> list[str]:
    entries = results["diagnostics"]
    chosen = [name for e in entries for name in e.get("segment", {}).get("chosen", {})]
    damped = [name for e in entries for name in e.get("damping", {}).get("weights", {})]
    sent = [point["method"] for e in entries for point in e.get("communication", [])]
    return [*chosen, *damped, *sent]


def finite(values: Any) -> np.ndarray:
    """Numbers as an array, with NaN for nulls and for infinities."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, np.nan)


# --- Marks ---------------------------------------------------------------------------


def plot(axes: Axes, x: Any, y: Any, look: Style) -> None:
    """A method's line."""
    axes.plot(
        *(x, y),
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        markersize=_MARKER_SIZE,
    )


def line(look: Style, *, marker: bool = True) -> Line2D:
    """A method's line in a legend."""
    return Line2D(
        *([], []),
        color=look.colour,
        marker=look.marker if marker else "",
        linestyle=look.line,
        markersize=_MARKER_SIZE,
    )


def dot(
    size: float, *, colour: Any = FAINT, marker: str = "o", face: Any = None
) -> Line2D:
    """A marker in a legend."""
    return Line2D(
        *([], []),
        marker=marker,
        markersize=size,
        color=colour,
        markerfacecolor=colour if face is None else face,
        linestyle="",
    )


def stroke(
    colour: Any, *, width: float = 1.6, alpha: float | None = None, dashes: Any = "-"
) -> Line2D:
    """A line without markers in a legend."""
    return Line2D([], [], color=colour, linewidth=width, alpha=alpha, linestyle=dashes)
