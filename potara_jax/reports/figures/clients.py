"""Who holds what.

Dimension letters: `C` clients, `K` classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from potara_jax.reports.drawing import Drawing
from potara_jax.reports.figures.styles import finite
from potara_jax.reports.formats import label
from potara_jax.reports.summary import Record, Results

_MAX_NAMES = 20
_LONGEST = 16  # letters of a client's name


def draw(results: Results) -> Figure | None:
    """Training examples by class and client, in the first seed."""
    firsts: dict[str, Record] = {}
    for entry in results["diagnostics"]:
        firsts.setdefault(entry["heterogeneity"], entry)
    if not firsts:
        return None
    counts = {name: _counts(entry) for name, entry in firsts.items()}
    held = next(iter(firsts.values())).get("held", {})
    height = 1.4 + min(0.16 * max(map(len, counts.values())), 3)
    figure = Figure(figsize=(9.5, height * len(counts) + 0.4), layout="constrained")
    by = f"by {held.get('kind', 'class')} and client"
    alike = all(len(each) == 1 for each in counts.values())
    title = f"Training examples {'by client' if alike else by}, first seed"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    largest = max(each.max() for each in counts.values())
    parts = figure.subfigures(len(counts), 1, squeeze=False)[:, 0]
    for part, (name, each) in zip(parts, counts.items(), strict=True):
        own = firsts[name].get("held", {})
        _panel(part, each, own, title=label(name), largest=largest)
        _name_clients(part.axes[-1 if len(each) == 1 else 1], own, each.shape[1])
    return figure


def _counts(entry: Record) -> np.ndarray:
    """Training examples `[K, C]`."""
    return (finite(entry["proportions"]) * finite(entry["counts"])[:, None]).T


def _panel(
    part: Any, counts: np.ndarray, held: Record, *, title: str, largest: float
) -> None:
    """A client's total as a bar, over its classes as shades if there are several."""
    if len(counts) == 1:
        _totals(part.subplots(), counts, title=title).set_xlabel("client")
        return
    ratios = 1, min(max(len(counts) / 3, 1.5), 3.5)
    above, below = part.subplots(2, 1, sharex=True, height_ratios=ratios)
    _totals(above, counts, title=title)
    above.tick_params(bottom=False)
    mesh = _shades(below, counts, largest)
    below.set_ylabel(held.get("kind", "class"))
    names = held.get("names", ())[: len(counts)]  # the last may be nobody's
    if len(names) == len(counts) <= _MAX_NAMES:
        below.set_yticks(range(len(counts)), names, fontsize=7)
    bar = part.colorbar(mesh, ax=[above, below], pad=0.01, aspect=30)
    bar.set_label("training examples")
    bar.outline.set_visible(False)
    part.align_ylabels([above, below])


def _name_clients(axes: Axes, held: Record, number: int) -> None:
    """Write the clients' names below their columns, if they have some and are few."""
    names = [_shortened(name) for name in held.get("clients", ())]
    if len(names) == number <= _MAX_NAMES:
        labels = [f"{client} {name}" for client, name in enumerate(names)]
        axes.set_xticks(range(number), labels, rotation=90, fontsize=7)


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _totals(above: Axes, counts: np.ndarray, *, title: str) -> Axes:
    """Every client's number of examples as a bar."""
    above.bar(range(counts.shape[1]), counts.sum(0), width=0.8, color="#7f93a8")
    above.set_title(title)
    above.set_ylabel("total")
    above.grid(axis="x", visible=False)
    return above


def _shades(axes: Axes, counts: np.ndarray, largest: float) -> Any:
    """The square root of a count as a shade, so that a few examples can be seen."""
    classes, number = counts.shape
    edges = (np.arange(n + 1) - 0.5 for n in (number, classes))
    gap = 0.6 if number <= 60 and classes <= 20 else 0
    norm = PowerNorm(0.5, 0, largest)
    mesh = axes.pcolormesh(
        *(*edges, counts), cmap="Blues", norm=norm, edgecolors="white", linewidth=gap
    )
    axes.grid(visible=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(20, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("client")
    return mesh


CLIENTS = Drawing(
    draw,
    "Who holds what",
    "Each column is a client: its number of training examples above, what it holds "
    "below, darker for more examples. A column with few dark cells is a client that "
    "sees only a small part of the data's variety.",
)
