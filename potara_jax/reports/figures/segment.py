"""The held-out loss on the segment between the local and the federated model.

Dimension letters: `C` clients, `T` points of the segment.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from potara_jax.reports import drawing
from potara_jax.reports.drawing import FAINT, INK, Drawing
from potara_jax.reports.figures.styles import (
    Style,
    dot,
    finite,
    stroke,
    styles,
)
from potara_jax.reports.summary import Record, Results, of_seeds

_CLIENT = "#9aa5b1"


def draw(results: Results) -> Figure | None:
    """Every client's loss from the local to the federated model, in the first seed."""
    firsts = {name: each[0] for name, each in of_seeds(results, "segment").items()}
    if not firsts:
        return None
    looks, curves = styles(results), [finite(s["losses"]) for s in firsts.values()]
    title = "Held-out loss on the segment between the two models, first seed"
    figure, panels = drawing.panels(list(firsts), height=3.3, title=title)
    if _spans_a_decade(curves):
        drawing.log_axis(panels[0], "y", subs=(1, 2, 5))
    for axes, segment in zip(panels, firsts.values(), strict=True):
        _panel(axes, segment, looks)
    _name_ends(panels)
    drawing.name_axes(panels, x="weight of the federated model", y="held-out loss")
    drawing.legend(figure, _legend(firsts, looks))
    return figure


def _spans_a_decade(arrays: Sequence[np.ndarray]) -> bool:
    values = np.concatenate([array.ravel() for array in arrays])
    values = values[values > 0]
    return bool(values.size) and values.max() > 10 * values.min()


def _name_ends(panels: Sequence[Axes]) -> None:
    """Both models' names under the ends, inside their panel."""
    panels[0].set_xlim(-0.02, 1.02)
    panels[0].set_xticks([0, 0.25, 0.5, 0.75, 1], ["local", "¼", "½", "¾", "federated"])
    for axes in panels:
        texts = axes.get_xticklabels()
        texts[0].set_horizontalalignment("left")
        texts[-1].set_horizontalalignment("right")


def _panel(axes: Axes, segment: Record, looks: dict[str, Style]) -> None:
    """Losses `[C, T]`, with the weights that the first methods have chosen."""
    points, losses = finite(segment["points"]), finite(segment["losses"])
    few = min(1.0, 20 / len(losses))
    width, alpha = 0.5 + 0.4 * few, 0.3 + 0.5 * few
    axes.plot(points, losses.T, color=_CLIENT, linewidth=width, alpha=alpha)
    for name, weights in _marked(segment):
        heights = _on_curves(axes, points, losses, finite(weights))
        _mark(axes, finite(weights), heights, looks[name], few)
    mean = np.ma.masked_invalid(losses).mean(0)  # of the clients that have a loss
    axes.plot(points, mean, color=INK, linewidth=2.4, zorder=4)
    _name_barrier(axes, finite(segment["barrier"]))


def _mark(
    axes: Axes, weights: np.ndarray, heights: np.ndarray, look: Style, few: float
) -> None:
    axes.scatter(
        *(weights, heights),
        s=6 + 18 * few,
        marker=look.marker,
        color=[look.colour],
        edgecolors="white",
        linewidths=0.3,
        alpha=0.6 + 0.4 * few,
        zorder=3,
    )


def _marked(segment: Record) -> list[tuple[str, list]]:
    """The first two methods that chose a weight: more would hide the curves."""
    return list(segment["chosen"].items())[:2]


def _on_curves(
    axes: Axes, points: np.ndarray, losses: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Every client's loss at its weight, on the curve as it is drawn."""
    log = axes.get_yscale() == "log"
    curves = np.log(np.maximum(losses, 1e-12)) if log else losses
    pairs = zip(weights, curves, strict=True)
    values = np.asarray([np.interp(weight, points, curve) for weight, curve in pairs])
    return np.exp(values) if log else values


def _name_barrier(axes: Axes, barrier: np.ndarray) -> None:
    known = barrier[np.isfinite(barrier)]
    text = "all clients' models diverged"
    if known.size:
        text = f"barrier: median {np.median(known):.2g}, largest {known.max():.2g}"
    ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    corner = {"ha": "right", "va": "bottom", "transform": axes.transAxes}
    axes.text(0.99, 0.02, text, fontsize=8, color=FAINT, bbox=ground, **corner)


def _legend(firsts: dict[str, Record], looks: dict[str, Style]) -> dict[str, Artist]:
    names = dict.fromkeys(name for one in firsts.values() for name, _ in _marked(one))
    entries: dict[str, Artist] = {
        "one client": stroke(_CLIENT, width=1),
        "mean over clients": stroke(INK, width=2.4),
    }
    for name in names:
        look = looks[name]
        mark = dot(6, colour=look.colour, marker=look.marker)
        entries[f"weight chosen by {name}"] = mark
    return entries


SEGMENT = Drawing(
    draw,
    "Between the local and the federated model",
    "Each thin line is one client's loss on held-out samples as its merge weight goes "
    "from the local model (left) to the federated one (right). A curve that dips "
    "between its ends can gain from merging, and a good weight sits at its lowest "
    "point. The barrier is how far a curve rises above the straight line between its "
    "ends: where it is zero, the two models are linearly connected.",
)
