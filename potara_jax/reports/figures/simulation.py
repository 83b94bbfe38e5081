"""A simulation: scores by round, speed and memory."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from potara_jax.reports import drawing
from potara_jax.reports.drawing import FAINT, Drawing
from potara_jax.reports.formats import Metric, label, metric_of
from potara_jax.reports.summary import Record, Results

_BLUE, _RED = "#0072b2", "#d55e00"


def name_of(cell: Record) -> str:
    """A federation's name."""
    return f"{label(cell['heterogeneity'])}, seed {cell['seed']}"


def scores(metric: Metric) -> Drawing:
    """The scores by round."""
    return Drawing(
        draw_scores,
        f"{metric.name.capitalize()} by round",
        "Solid: mean over the scored clients; dotted: their worst tenth.",
    )


def draw_scores(results: Results) -> Figure:
    """Mean and worst tenth of the scored clients."""
    metric = metric_of(results)
    title = f"{metric.name.capitalize()} of the clients' models"
    figure, (axes,) = drawing.columns([""], size=(7, 3.6), title=title)
    for cell in results["cells"]:
        curve = cell["curve"]
        rounds = [point["round"] for point in curve]
        mean = [metric.shown(point["mean"]) for point in curve]
        worst = [metric.shown(point["worst_decile"]) for point in curve]
        (line,) = axes.plot(rounds, mean, marker="o", label=name_of(cell))
        axes.plot(rounds, worst, marker="o", ls=":", color=line.get_color())
    axes.plot([], [], ls=":", color=FAINT, label="worst tenth of the clients")
    _number_rounds(axes)
    axes.set_ylabel(metric.axis)
    axes.legend()
    return figure


def speed(lines: Sequence[Record]) -> Drawing:
    """Speed and memory by round; `lines` as in the simulation's report."""
    return Drawing(
        lambda _: draw_speed(lines),
        "Speed and memory by round",
        "The rounds of all federations, one after the other.",
    )


def draw_speed(lines: Sequence[Record]) -> Figure | None:
    """Client-steps per second and the process's memory; nothing without lines."""
    if not lines:
        return None
    titles = ["client-steps per second", "memory of the process, MiB"]
    figure, (left, right) = drawing.columns(titles, size=(9.5, 3.4))
    federations: dict[tuple[str, int], list[Record]] = {}
    for line in lines:
        key = line["heterogeneity"], line["seed"]
        federations.setdefault(key, []).append(line)
    for each in federations.values():
        rounds = [line["round"] for line in each]
        pace = [line["steps"] / max(line["seconds"], 1e-9) for line in each]
        memory = [line["memory"] / 2**20 for line in each]
        marker = "o" if len(each) < 20 else ""
        left.plot(rounds, pace, color=_BLUE, marker=marker)
        right.plot(rounds, memory, color=_RED, marker=marker)
    for axes in (left, right):
        axes.set_ylim(0, 1.1 * axes.dataLim.y1)  # so that no marker is cut off
        _number_rounds(axes)
    return figure


def _number_rounds(axes: Axes) -> None:
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
