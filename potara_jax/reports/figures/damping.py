"""The merge weight against the damping of the Fisher information.

Dimension letters: `D` dampings, `C` clients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from potara_jax.reports import drawing
from potara_jax.reports.drawing import DASHED, FAINT, INK, Drawing
from potara_jax.reports.figures.styles import (
    Style,
    finite,
    line,
    plot,
    stroke,
    styles,
)
from potara_jax.reports.summary import Record, Results, of_seeds


def draw(results: Results) -> Figure | None:
    """Mean and spread over clients of every estimator's weight."""
    groups = of_seeds(results, "damping")
    if not groups:
        return None
    looks = styles(results)
    names = list(dict.fromkeys(n for e in groups.values() for n in e[0]["weights"]))
    title = "Merge weight against the damping of the Fisher information"
    figure, panels = drawing.panels(list(groups), height=2.9, title=title)
    for axes, seeds in zip(panels, groups.values(), strict=True):
        for name in names:
            _line(axes, seeds, name, looks[name])
        axes.axvline(seeds[0]["chosen"], color=INK, linewidth=1, linestyle=DASHED)
    _scale(panels[0], groups)
    drawing.name_axes(panels, x="damping", y="weight of the federated model")
    drawing.legend(figure, _legend(names, looks))
    return figure


def _line(axes: Axes, seeds: list[Record], name: str, look: Style) -> None:
    """One estimator's weights `[D, C]`, with the clients of all seeds side by side."""
    values = seeds[0]["values"]
    weights = np.concatenate([finite(one["weights"][name]) for one in seeds], axis=1)
    low, high = np.nanquantile(weights, [0.1, 0.9], axis=1)
    axes.fill_between(values, low, high, color=look.colour, alpha=0.15, linewidth=0)
    for edge in (low, high):
        axes.plot(values, edge, color=look.colour, linewidth=0.7, alpha=0.6)
    plot(axes, values, np.nanmean(weights, axis=1), look)


def _scale(axes: Axes, groups: dict[str, list[Any]]) -> None:
    """Quantiles begin at zero and are linear; all other dampings are logarithmic."""
    if all(min(seed["values"]) > 0 for seeds in groups.values() for seed in seeds):
        drawing.log_axis(axes, "x")
    axes.set_ylim(-0.02, 1.02)


def _legend(names: list[str], looks: dict[str, Style]) -> dict[str, Artist]:
    return {
        **{f"{name}: mean over clients": line(looks[name]) for name in names},
        "10 to 90 % of the clients": Patch(color=FAINT, alpha=0.25, linewidth=0),
        "damping in use": stroke(INK, width=1, dashes=DASHED),
    }


DAMPING = Drawing(
    draw,
    "Sensitivity to the damping",
    "The closed-form weight rests on the inverse of the Fisher information, which "
    "damping keeps finite. Where the lines are flat around the dashed one, the choice "
    "of damping matters little. Where the band is narrow, all clients get about the "
    "same weight, so that little is personalised.",
)
