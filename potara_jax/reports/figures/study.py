"""A study: regret by samples and by damping, gain by heterogeneity."""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from potara_jax.reports import drawing
from potara_jax.reports.drawing import INK, Drawing
from potara_jax.reports.estimates import (
    Interval,
    Setting,
    best_damped,
    heterogeneities,
    mean_over_cells,
    name_of,
    settings_of,
)
from potara_jax.reports.formats import Metric, metric_of
from potara_jax.reports.summary import Record, Results

NUMBER = 30  # of samples, where a figure or a table shows one number alone
_KINDS = {"train": "training samples", "heldout": "held-out samples"}
_ESTIMATORS = (
    "hermite",
    "hermite_bayes",
    "tempered_bayes",
    "mix",
    "gauss_newton",
    "grid",
)
_CURVATURES = {
    f"potara, {fisher} core": ("potara", fisher, "core", "diagonal")
    for fisher in ("exact", "empirical")
}
_NAMES = (*_ESTIMATORS, *_CURVATURES)
_MARKERS = "osD^vPX*hp"
_SIZE = (9.5, 4.4)


def drawings(metric: Metric, *, balanced: bool = False) -> dict[str, Drawing]:
    """The figures by the names of their files.

    Args:
      metric: of the study.
      balanced: whether clients' scores under equal shares of their classes are known.
    """
    of_balanced = Drawing(
        partial(draw_samples, balanced=True),
        "Balanced regret and the number of samples",
        "The same with equal shares of each client's classes, against the best "
        "constant weight under them. Weights are chosen for the clients' own shares.",
    )
    return {
        "samples": Drawing(
            draw_samples,
            "Regret and the number of samples",
            "What a weight loses to the best constant weight, which is an oracle; zero "
            "is as good. Left: training samples; right: held-out samples. Of Potara's "
            "dampings the best at each number is shown, which favours it. The bands "
            "are 95 % intervals over seeds.",
        ),
        **({"samples_balanced": of_balanced} if balanced else {}),
        "damping": Drawing(
            draw_damping,
            "Regret and the damping",
            f"Potara's weight with relative damping on {NUMBER} samples, one line "
            "per curvature. Where a line is not flat, the choice of damping matters.",
        ),
        "heterogeneity": Drawing(
            draw_heterogeneity,
            "Gain over the better model",
            f"{metric.name.capitalize()} against the better of the federated and the "
            f"local model, by how much the clients differ ({NUMBER} samples). Below "
            "zero, merging has done harm.",
        ),
    }


def _panels(results: Results, what: str, title: str) -> tuple[Figure, list[Axes]]:
    """A panel for training samples and one for held-out ones, from a line at zero."""
    figure, panels = drawing.columns(
        list(_KINDS.values()), size=_SIZE, title=title, sharey=True
    )
    for axes in panels:
        axes.axhline(0, color=INK, linewidth=0.8)
    panels[0].set_ylabel(what + " in points" * metric_of(results).percent)
    return figure, panels


# --- By samples ----------------------------------------------------------------------


def draw_samples(results: Results, *, balanced: bool = False) -> Figure:
    """Regret against the number of samples, trained on and held out.

    Args:
      results: of a study.
      balanced: whether under equal shares of each client's classes.
    """
    settings = best_damped(settings_of(results))
    what = "balanced regret" if balanced else "regret"
    title = f"{what.capitalize()} and the number of samples"
    figure, panels = _panels(results, what, title)
    numbers = sorted({s.fields["number"] for s in settings if "number" in s.fields})
    entries: dict[str, Artist] = {}
    for axes, kind in zip(panels, _KINDS, strict=True):
        for name, group in _lines(settings, kind).items():
            values = [s.balanced if balanced else s.regret for s in group]
            entries[name] = _line_with_band(axes, group, values, _look(name))
        drawing.log_axis(axes, "x", at=numbers)
        axes.set_xlabel("samples of a client")
    drawing.legend(figure, entries)
    return figure


def _lines(settings: list[Setting], kind: str) -> dict[str, list[Setting]]:
    """The settings of every line, by the line's name, in order of samples."""
    shown = [s for s in settings if s.fields.get("samples") == kind]
    lines: dict[str, list[Setting]] = {}
    for name in _NAMES:
        key = _CURVATURES.get(name, (name,))
        group = [s for s in shown if _key(s)[: len(key)] == key]
        lines[name] = sorted(group, key=lambda s: s.fields["number"])
    return {name: group for name, group in lines.items() if group}


def _key(setting: Setting) -> tuple[Any, ...]:
    names = ("estimator", "fisher", "space", "factorisation")
    return tuple(setting.fields.get(name) for name in names)


def _look(name: str) -> dict[str, Any]:
    """A line's marker and colour, the same in all panels and figures."""
    place = _NAMES.index(name)
    marker = _MARKERS[place % len(_MARKERS)]
    return {"marker": marker, "color": f"C{place}", "markersize": 4}


def _line_with_band(
    axes: Axes,
    group: list[Setting],
    values: list[Interval | None],
    look: dict[str, Any],
) -> Artist:
    x = [s.fields["number"] for s in group]
    y, half = np.array([value or (np.nan, np.nan) for value in values]).T
    (line,) = axes.plot(x, y, **look)
    axes.fill_between(x, y - half, y + half, color=look["color"], alpha=0.12, lw=0)
    return line


# --- By damping ----------------------------------------------------------------------


def draw_damping(results: Results) -> Figure:
    """Regret of Potara's weight against relative damping."""
    figure, panels = _panels(results, "regret", "Regret and the damping")
    curves = {kind: _by_curvature(results, kind) for kind in _KINDS}
    names = list(dict.fromkeys(name for each in curves.values() for name in each))
    entries: dict[str, Artist] = {}
    for axes, each in zip(panels, curves.values(), strict=True):
        for name, group in each.items():
            entries[name] = _damping_line(axes, group, names.index(name), name)
        drawing.log_axis(axes, "x", subs=(1, 3))
        axes.set_xlabel("relative damping")
    drawing.legend(figure, entries)
    return figure


def _by_curvature(results: Results, kind: str) -> dict[str, list[Setting]]:
    """Potara's settings that differ in the damping alone."""
    curves: dict[str, list[Setting]] = {}
    for s in settings_of(results):
        sampled = s.fields.get("samples"), s.fields.get("number")
        if s.fields.get("damping") == "relative" and sampled == (kind, NUMBER):
            curves.setdefault(name_of(s.fields, damped=False), []).append(s)
    return curves


def _damping_line(axes: Axes, group: list[Setting], place: int, name: str) -> Artist:
    x = [s.fields["value"] for s in group]
    y = [s.regret.mean for s in group]
    dashes = "--" if "factors merged" in name else "-"
    (line,) = axes.plot(x, y, dashes, marker="o", markersize=3.5, color=f"C{place}")
    return line


# --- By heterogeneity ----------------------------------------------------------------


def _better(cell: Record) -> float:
    return max(cell["federated"], cell["local"])


def draw_heterogeneity(results: Results) -> Figure:
    """Gain over the better model at every heterogeneity."""
    scale, names = metric_of(results).scale, heterogeneities(results)
    better, oracle = (
        [mean_over_cells(results, name, score) for name in names]
        for score in (_better, itemgetter("best_constant"))
    )
    gain = lambda scores: scale * (np.array(scores) - np.array(better))
    settings = [
        s
        for s in best_damped(settings_of(results))
        if s.fields.get("number", NUMBER) == NUMBER
    ]
    figure, panels = _panels(results, "gain", "Gain over the better model")
    entries: dict[str, Artist] = {}
    for axes, kind in zip(panels, _KINDS, strict=True):
        for name, (setting, *_) in _lines(settings, kind).items():
            gains = gain([setting.scores[h] for h in names])
            (entries[name],) = axes.plot(names, gains, **_look(name))
        (entries["best constant (oracle)"],) = axes.plot(
            names, gain(oracle), "k:", linewidth=1
        )
        axes.set_xlabel("Dirichlet concentration, or tasks")
    drawing.legend(figure, entries)
    return figure
