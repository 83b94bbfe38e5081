"""Figures of an experiment's results, as PNG files.

Every figure has one panel a heterogeneity, and a method looks the same in all of them.
The same results give the same bytes. Dimension letters: `C` clients, `K` classes, `T`
points of the segment, `D` dampings.
"""

from __future__ import annotations

import math
import pathlib
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from potara_jax.reports import drawing
from potara_jax.reports.table import PARENTS, Results, by_heterogeneity, label
from potara_jax.reports.table import percent as in_percent

_FAINT, _INK, _CLIENT = "#707070", "#222222", "#9aa5b1"
_DASHED = (0, (4, 3))


class Style(NamedTuple):
    """How a method looks in every figure."""

    colour: tuple[float, float, float]
    marker: str
    line: Any


def draw(results: Results, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes every figure that the results hold data for; returns the files' paths."""
    makers = {
        "accuracy": accuracy,
        "segment": segment,
        "damping": damping,
        "communication": communication,
        "clients": clients,
    }
    return drawing.draw(makers, results, folder)


# --- How a method looks --------------------------------------------------------------

_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7"),
    *("#e69f00", "#56b4e9", "#882255"),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)))


def styles(results: Results) -> dict[str, Style]:
    """A look for every method in the results.

    Those of the diagnostics come first, with the clearest looks: they share panels,
    where the others mostly have a labelled row.
    """
    names = [record["method"] for record in results["methods"]]
    silent = [name for name in PARENTS if name in names]
    order = dict.fromkeys([*_sharing_panels(results), *silent, *names])
    return {name: _style(number) for number, name in enumerate(order)}


def _style(number: int) -> Style:
    """The colours in turn, darker the second time and paler the third."""
    turn, place = divmod(number, len(_COLOURS))
    towards, share = ((0, 0.0), (0, 0.45), (1, 0.45))[turn % 3]
    colour = tuple(
        (1 - share) * part + share * towards for part in to_rgb(_COLOURS[place])
    )
    return Style(colour, _MARKERS[number % len(_MARKERS)], _LINES[turn % 3])


def _sharing_panels(results: Results) -> list[str]:
    entries = results["diagnostics"]
    chosen = [name for e in entries for name in e.get("segment", {}).get("chosen", {})]
    damped = [name for e in entries for name in e.get("damping", {}).get("weights", {})]
    sent = [point["method"] for e in entries for point in e.get("communication", [])]
    return [*chosen, *damped, *sent]


def _diagnostics(results: Results, key: str) -> dict[str, list[Any]]:
    """One diagnostic of every seed, `{heterogeneity: [value]}`, where there is any."""
    found: dict[str, list[Any]] = {}
    for entry in results["diagnostics"]:
        if entry.get(key):
            found.setdefault(entry["heterogeneity"], []).append(entry[key])
    return found


# --- Accuracy ------------------------------------------------------------------------


def accuracy(results: Results, *, parents: tuple[str, ...] = PARENTS) -> Figure | None:
    """Every method's accuracy: dots for seeds, a marker for their mean.

    parents: methods of which the better one is shown as a line.
    """
    groups = by_heterogeneity(results)
    if not groups:
        return None
    looks = styles(results)
    names = list(dict.fromkeys(name for methods in groups.values() for name in methods))
    figure, panels = drawing.panels(
        list(groups),
        height=0.9 + 0.27 * len(names),
        title="Accuracy on each client's own test distribution, mean over clients",
    )
    for axes, methods in zip(panels, groups.values(), strict=True):
        for name, records in methods.items():
            _accuracy_row(axes, names.index(name), records, looks[name])
        _better_parent(axes, methods, parents)
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(names)), [drawing.plain(name) for name in names])
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    drawing.name_axes(panels, x="accuracy [%]", y="")
    drawing.legend(figure, _accuracy_legend(results, parents))
    return figure


def _accuracy_row(axes: Axes, place: int, records: list, look: Style) -> None:
    values = 100 * np.asarray([record["mean"] for record in records])
    mean, oracle = values.mean(), records[0]["oracle"]
    if len(values) > 1:
        half = values.std(ddof=1)
        ends = [mean - half, mean + half]
        axes.plot(ends, [place, place], color=look.colour, alpha=0.35, linewidth=4)
        dots = np.full(len(values), place)
        axes.plot(values, dots, ".", color=look.colour, markersize=4, alpha=0.8)
    face = "white" if oracle else look.colour
    axes.plot(mean, place, "o", markersize=7, color=look.colour, markerfacecolor=face)
    text = in_percent(mean / 100)
    where = axes.get_yaxis_transform()
    axes.text(1.01, place, text, transform=where, va="center", color=_INK, fontsize=8)


def _better_parent(axes: Axes, methods: dict[str, list], parents) -> None:
    if parents and set(parents) <= set(methods):
        mean = lambda name: np.mean([record["mean"] for record in methods[name]])
        best = max(map(mean, parents))
        axes.axvline(100 * best, color=_FAINT, linewidth=1, linestyle=_DASHED, zorder=1)


def _accuracy_legend(results: Results, parents) -> dict[str, Any]:
    """What the marks mean, of those that occur."""
    records = results["methods"]
    several = len({record["seed"] for record in records}) > 1
    oracles = any(record["oracle"] for record in records)
    names = {record["method"] for record in records}
    both = bool(parents) and set(parents) <= names
    entries = {
        "mean over seeds" if several else "the only seed": (_dot(7), True),
        "one seed": (_dot(3), several),
        "± standard deviation": (_stroke(_FAINT, width=4, alpha=0.35), several),
        "oracle: looks at the test data": (_dot(7, face="white"), oracles),
        "better of federated and local": (_stroke(_FAINT, width=1, line=_DASHED), both),
    }
    return {text: artist for text, (artist, occurs) in entries.items() if occurs}


def _dot(size: float, *, colour: Any = _FAINT, marker="o", face=None) -> Line2D:
    face = colour if face is None else face
    return Line2D(
        *([], []),
        marker=marker,
        markersize=size,
        color=colour,
        markerfacecolor=face,
        linestyle="",
    )


def _stroke(colour: Any, *, width: float = 1.6, alpha=None, line: Any = "-") -> Line2D:
    return Line2D([], [], color=colour, linewidth=width, alpha=alpha, linestyle=line)


# --- The segment ---------------------------------------------------------------------


def segment(results: Results) -> Figure | None:
    """Held-out loss from the local to the federated model, in the first seed."""
    firsts = {name: each[0] for name, each in _diagnostics(results, "segment").items()}
    if not firsts:
        return None
    looks, curves = styles(results), [_array(s["losses"]) for s in firsts.values()]
    title = "Held-out loss on the segment between the two models, first seed"
    figure, panels = drawing.panels(list(firsts), height=3.3, title=title)
    if _spans_a_decade(curves):
        _log_loss(panels[0])
    for axes, one in zip(panels, firsts.values(), strict=True):
        _segment_panel(axes, one, looks)
    _name_ends(panels)
    drawing.name_axes(panels, x="weight of the federated model", y="held-out loss")
    drawing.legend(figure, _segment_legend(firsts, looks))
    return figure


def _array(values: Any) -> np.ndarray:
    """Numbers as an array, with NaN for nulls and for what is not finite."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _spans_a_decade(arrays: list[np.ndarray]) -> bool:
    values = np.concatenate([array.ravel() for array in arrays])
    values = values[values > 0]
    return bool(values.size) and values.max() > 10 * values.min()


def _log_loss(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _name_ends(panels: list[Axes]) -> None:
    """Both models' names under the ends, inside their panel."""
    panels[0].set_xlim(-0.02, 1.02)
    panels[0].set_xticks([0, 0.25, 0.5, 0.75, 1], ["local", "¼", "½", "¾", "federated"])
    for axes in panels:
        texts = axes.get_xticklabels()
        texts[0].set_ha("left")
        texts[-1].set_ha("right")


def _segment_panel(axes: Axes, one: dict, looks: dict[str, Style]) -> None:
    points, losses = _array(one["points"]), _array(one["losses"])
    few = min(1.0, 20 / len(losses))
    width, alpha = 0.5 + 0.4 * few, 0.3 + 0.5 * few
    axes.plot(points, losses.T, color=_CLIENT, linewidth=width, alpha=alpha)
    for name, weights in _marked(one):
        at = _on_curves(axes, points, losses, _array(weights))
        look = looks[name]
        axes.scatter(
            *(_array(weights), at),
            s=6 + 18 * few,
            marker=look.marker,
            color=[look.colour],
            edgecolors="white",
            linewidths=0.3,
            alpha=0.6 + 0.4 * few,
            zorder=3,
        )
    axes.plot(points, np.nanmean(losses, axis=0), color=_INK, linewidth=2.4, zorder=4)
    _say_barrier(axes, _array(one["barrier"]))


def _marked(one: dict) -> list[tuple[str, list]]:
    """The first two methods that chose a weight: more would hide the curves."""
    return list(one["chosen"].items())[:2]


def _on_curves(axes: Axes, points, losses, weights) -> np.ndarray:
    """Every client's loss at its weight, on the curve as it is drawn."""
    log = axes.get_yscale() == "log"
    curves = np.log(np.maximum(losses, 1e-12)) if log else losses
    pairs = zip(weights, curves, strict=True)
    values = np.asarray([np.interp(weight, points, curve) for weight, curve in pairs])
    return np.exp(values) if log else values


def _say_barrier(axes: Axes, barrier: np.ndarray) -> None:
    middle, most = np.nanmedian(barrier), np.nanmax(barrier)
    text = f"barrier: median {middle:.2g}, largest {most:.2g}"
    axes.set_title(text, loc="right", fontsize=8, color=_FAINT)


def _segment_legend(firsts: dict[str, dict], looks: dict[str, Style]) -> dict[str, Any]:
    names = dict.fromkeys(name for one in firsts.values() for name, _ in _marked(one))
    entries = {
        "one client": _stroke(_CLIENT, width=1),
        "mean over clients": _stroke(_INK, width=2.4),
    }
    for name in names:
        look = looks[name]
        mark = _dot(6, colour=look.colour, marker=look.marker)
        entries[f"weight chosen by {name}"] = mark
    return entries


# --- Damping -------------------------------------------------------------------------


def damping(results: Results) -> Figure | None:
    """The merge weight against the damping of the Fisher information."""
    groups = _diagnostics(results, "damping")
    if not groups:
        return None
    looks = styles(results)
    names = list(dict.fromkeys(n for e in groups.values() for n in e[0]["weights"]))
    title = "Merge weight against the damping of the Fisher information"
    figure, panels = drawing.panels(list(groups), height=2.9, title=title)
    for axes, seeds in zip(panels, groups.values(), strict=True):
        for name in names:
            _damping_line(axes, seeds, name, looks[name])
        axes.axvline(seeds[0]["chosen"], color=_INK, linewidth=1, linestyle=_DASHED)
    panels[0].set_xscale("log", nonpositive="mask")
    panels[0].set_ylim(-0.02, 1.02)
    drawing.name_axes(panels, x="damping", y="weight of the federated model")
    entries = {f"{n}: mean over clients": _line(looks[n]) for n in names}
    entries["10 to 90 % of the clients"] = Patch(color=_FAINT, alpha=0.25, linewidth=0)
    entries["damping in use"] = _stroke(_INK, width=1, line=_DASHED)
    drawing.legend(figure, entries)
    return figure


def _damping_line(axes: Axes, seeds: list[dict], name: str, look: Style) -> None:
    """One estimator's weights `[D, C]`, with the clients of all seeds side by side."""
    values = seeds[0]["values"]
    weights = np.concatenate([_array(one["weights"][name]) for one in seeds], axis=1)
    low, high = np.nanquantile(weights, [0.1, 0.9], axis=1)
    axes.fill_between(values, low, high, color=look.colour, alpha=0.15, linewidth=0)
    for edge in (low, high):
        axes.plot(values, edge, color=look.colour, linewidth=0.7, alpha=0.6)
    _plot(axes, values, np.nanmean(weights, axis=1), look)


def _plot(axes: Axes, x: Any, y: Any, look: Style) -> None:
    axes.plot(
        *(x, y),
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        markersize=4.5,
    )


def _line(look: Style, *, marker: bool = True) -> Line2D:
    return Line2D(
        *([], []),
        color=look.colour,
        marker=look.marker if marker else "",
        linestyle=look.line,
        markersize=4.5,
    )


# --- Communication -------------------------------------------------------------------

Curve = tuple[np.ndarray, np.ndarray]


def communication(results: Results) -> Figure | None:
    """Accuracy against the bytes that all clients have sent and received."""
    groups = _diagnostics(results, "communication")
    paths = {name: _paths(seeds) for name, seeds in groups.items()}
    if not any(paths.values()):
        return None
    levels = {name: _levels(results, name) for name in groups}
    title = "Accuracy against bytes communicated, all clients, up and down"
    figure, panels = drawing.panels(list(groups), height=3.1, title=title)
    ends = [sent.max() for each in paths.values() for sent, _ in each.values()]
    scale, unit = _unit(max(ends))
    looks = styles(results)
    for axes, name in zip(panels, groups, strict=True):
        _communication_panel(axes, paths[name], levels[name], looks, scale)
    _scale_bytes(panels[0], min(ends) / scale, max(ends) / scale)
    drawing.name_axes(panels, x=f"communicated [{unit}]", y="accuracy [%]")
    drawing.legend(figure, _communication_legend(paths, levels, looks))
    return figure


def _paths(seeds: list[list[dict]]) -> dict[str, Curve]:
    """`{method: (bytes, accuracy)}` by round, means over seeds, of those that send."""
    rounds: dict[str, dict[int, list]] = {}
    for point in (point for seed in seeds for point in seed):
        by_round = rounds.setdefault(point["method"], {})
        by_round.setdefault(point["round"], []).append((point["bytes"], point["mean"]))
    means = {
        method: np.asarray([np.mean(by_round[key], axis=0) for key in sorted(by_round)])
        for method, by_round in rounds.items()
    }
    return {method: (m[:, 0], m[:, 1]) for method, m in means.items() if m[:, 0].any()}


def _levels(results: Results, heterogeneity: str) -> dict[str, float]:
    """`{method: accuracy}` of methods that send nothing and are no oracles."""
    sends = lambda record: record["bytes_up"] or record["bytes_down"]
    return {
        method: float(np.mean([record["mean"] for record in records]))
        for method, records in by_heterogeneity(results).get(heterogeneity, {}).items()
        if not (records[0]["oracle"] or any(map(sends, records)))
    }


def _communication_panel(axes: Axes, paths, levels, looks, scale: float) -> None:
    for method, level in levels.items():
        look = looks[method]
        axes.axhline(100 * level, color=look.colour, linestyle=look.line, alpha=0.8)
    for method, (sent, reached) in paths.items():
        _plot(axes, sent / scale, 100 * reached, looks[method])


def _unit(most: float) -> tuple[float, str]:
    """The decimal unit in which a number of bytes is at least one."""
    power = min(3, int(math.log10(max(most, 1)) / 3))
    return 1000.0**power, ("B", "kB", "MB", "GB")[power]


def _scale_bytes(axes: Axes, least: float, most: float) -> None:
    """Linear in bytes, unless one method sends ten times as much as another."""
    if most < 10 * least:
        axes.set_xlim(0, 1.04 * most)
        return
    axes.set_xscale("log", nonpositive="mask")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _communication_legend(paths, levels, looks: dict[str, Style]) -> dict[str, Any]:
    sending = dict.fromkeys(name for each in paths.values() for name in each)
    silent = dict.fromkeys(name for each in levels.values() for name in each)
    entries = {name: _line(looks[name]) for name in sending}
    for name in silent:
        text = f"{name} (no communication)"
        entries[text] = _line(looks[name], marker=False)
    return entries


# --- Clients -------------------------------------------------------------------------


_MOST_NAMED = 20


def clients(results: Results) -> Figure | None:
    """Who holds what: training examples by class and client, in the first seed."""
    firsts: dict[str, dict] = {}
    for entry in results["diagnostics"]:
        firsts.setdefault(entry["heterogeneity"], entry)
    if not firsts:
        return None
    held = {name: _held(entry) for name, entry in firsts.items()}
    of = next(iter(firsts.values())).get("held", {})
    height = 1.4 + min(0.16 * max(map(len, held.values())), 3)
    figure = Figure(figsize=(9.5, height * len(held) + 0.4), layout="constrained")
    title = f"Training examples by {of.get('kind', 'class')} and client, first seed"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    most = max(counts.max() for counts in held.values())
    parts = figure.subfigures(len(held), 1, squeeze=False)[:, 0]
    for part, (name, counts) in zip(parts, held.items(), strict=True):
        _clients_panel(part, counts, of, title=label(name), most=most)
    return figure


def _held(entry: dict) -> np.ndarray:
    """Training examples `[K, C]`."""
    return (_array(entry["proportions"]) * _array(entry["counts"])[:, None]).T


def _clients_panel(
    part: Any, counts: np.ndarray, held: dict, *, title: str, most: float
) -> None:
    """A client's total as a bar, over its classes as shades."""
    above, below = part.subplots(2, 1, sharex=True, height_ratios=(1, 3.5))
    above.bar(range(counts.shape[1]), counts.sum(0), width=0.8, color="#7f93a8")
    above.set_title(title)
    above.set_ylabel("total")
    above.grid(axis="x", visible=False)
    above.tick_params(bottom=False)
    mesh = _shades(below, counts, most)
    below.set_ylabel(held.get("kind", "class"))
    if 0 < len(held.get("names", ())) <= _MOST_NAMED:
        below.set_yticks(range(len(counts)), held["names"], fontsize=7)
    bar = part.colorbar(mesh, ax=[above, below], pad=0.01, aspect=30)
    bar.set_label("training examples")
    bar.outline.set_visible(False)
    part.align_ylabels([above, below])


def _shades(axes: Axes, counts: np.ndarray, most: float) -> Any:
    """The square root of a count as a shade, so that a few examples can be seen."""
    classes, number = counts.shape
    edges = (np.arange(n + 1) - 0.5 for n in (number, classes))
    gap = 0.6 if number <= 60 and classes <= 20 else 0
    norm = PowerNorm(0.5, 0, most)
    mesh = axes.pcolormesh(
        *(*edges, counts), cmap="Blues", norm=norm, edgecolors="white", linewidth=gap
    )
    axes.grid(visible=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(20, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("client")
    return mesh
