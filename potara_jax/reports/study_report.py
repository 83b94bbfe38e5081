"""A study of merge weights: its table, its figures, and its page.

`results["cells"]` has a record a heterogeneity and seed, with the accuracies of both
models, of the oracles, and of every estimate. A *setting* is an estimate without its
cell; its *regret* is what it loses to the best constant weight of the cell, which is an
oracle. Differences are paired within a cell, averaged over heterogeneities, and given
with a 95 % t-interval over seeds.
"""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from scipy import stats

from potara_jax.reports import drawing, page
from potara_jax.reports.table import label

Results = dict[str, Any]
_FIELDS = (
    *("estimator", "fisher", "space", "factorisation", "damping", "value", "merge"),
    *("samples", "number"),
)


class Interval(NamedTuple):
    """A mean over seeds, and half the width of its 95 % interval (0 for one seed)."""

    mean: float
    half: float


class Setting(NamedTuple):
    """One way to weigh, over all cells; differences in accuracy are in points.

    `regret`: to the best constant weight. `to_grid`: to grid search on the same
    samples. `worst_gain`: over the better model of both, at the heterogeneity where it
    is least. `passes`: cost a sample, in forward-backward passes.
    """

    fields: dict[str, Any]
    regret: Interval
    to_grid: Interval | None
    worst_gain: float
    weights: dict[str, float]
    accuracies: dict[str, float]
    passes: float

    @property
    def name(self) -> str:
        """Everything but the samples, in words."""
        return name_of(self.fields)


def name_of(fields: dict[str, Any]) -> str:
    """An estimate's setting in words, without its samples."""
    shown = [fields["estimator"]]
    if fields.get("fisher"):
        kind = "" if fields["factorisation"] == "diagonal" else " kronecker"
        shown.append(f"{fields['fisher']}{kind} {fields['space']}")
        shown.append(f"{fields['damping']} {fields['value']:g}")
    if fields.get("merge") == "factor":
        shown.append("factors merged")
    return ", ".join(shown)


# --- Aggregation ---------------------------------------------------------------------


def settings_of(results: Results) -> list[Setting]:
    """All settings, in the order of their records."""
    groups: dict[tuple, list[tuple[dict, dict]]] = {}
    for cell in results["cells"]:
        for estimate in cell["estimates"]:
            key = tuple(estimate.get(name) for name in _FIELDS)
            groups.setdefault(key, []).append((cell, estimate))
    grids = {
        (_place(cell), e["samples"], e["number"]): e["mean"]
        for cell in results["cells"]
        for e in cell["estimates"]
        if e["estimator"] == "grid"
    }
    return [_setting(key, found, grids) for key, found in groups.items()]


def _place(cell: dict) -> tuple[str, int]:
    return cell["heterogeneity"], cell["seed"]


def _setting(key, found, grids) -> Setting:
    fields = {n: v for n, v in zip(_FIELDS, key, strict=True) if v is not None}
    lost = [(c["seed"], e["mean"] - c["best_constant"]) for c, e in found]
    gain = lambda c, e: e["mean"] - max(c["federated"], c["local"])
    return Setting(
        fields,
        _over_seeds(lost),
        _to_grid(fields, found, grids),
        100 * min(_by_heterogeneity(found, gain).values()),
        _by_heterogeneity(found, lambda c, e: e["weight"]),
        _by_heterogeneity(found, lambda c, e: e["mean"]),
        found[0][1]["passes"],
    )


def _to_grid(fields, found, grids) -> Interval | None:
    if "samples" not in fields:
        return None
    place = fields["samples"], fields["number"]
    return _over_seeds(
        [(c["seed"], e["mean"] - grids[(_place(c), *place)]) for c, e in found]
    )


def _over_seeds(differences: list[tuple[int, float]]) -> Interval:
    """The mean over heterogeneities of each seed, then over seeds, in points."""
    seeds: dict[int, list[float]] = {}
    for seed, value in differences:
        seeds.setdefault(seed, []).append(100 * value)
    means = [float(np.mean(values)) for values in seeds.values()]
    if len(means) < 2:
        return Interval(means[0], 0.0)
    error = float(np.std(means, ddof=1)) / np.sqrt(len(means))
    return Interval(
        float(np.mean(means)), float(stats.t.ppf(0.975, len(means) - 1) * error)
    )


def _by_heterogeneity(found, value: Callable[[dict, dict], float]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for cell, estimate in found:
        groups.setdefault(cell["heterogeneity"], []).append(value(cell, estimate))
    return {name: float(np.mean(values)) for name, values in groups.items()}


def best_damped(settings: list[Setting]) -> list[Setting]:
    """Of settings that differ in the damping alone, the one of least regret."""
    best: dict[tuple, Setting] = {}
    for setting in settings:
        fields = {
            k: v for k, v in setting.fields.items() if k not in ("damping", "value")
        }
        key = tuple(sorted((name, str(value)) for name, value in fields.items()))
        if key not in best or setting.regret.mean > best[key].regret.mean:
            best[key] = setting
    return list(best.values())


# --- The table -----------------------------------------------------------------------

COLUMNS = ("Weight", "Samples", "n", "Regret", "To grid", "Worst gain", "Passes")
_TERMINAL = 30
_NOTE = (
    "Regret: to the best constant weight, an oracle, in points of accuracy; to grid: "
    "to grid search on the same samples; both are means over heterogeneities with 95 % "
    "intervals over seeds. Worst gain: over the better of both models, where it is "
    "least. Passes: forward-backward passes a sample. Of Potara's dampings the best is "
    "shown for each curvature; study.csv has all."
)


def _rows(results: Results, number: int | None = None) -> list[tuple[str, ...]]:
    """Lines of the table: by samples and their number, best first.

    number: of samples, beside what needs none; default: all of them.
    """
    order = lambda s: (
        s.fields.get("samples", ""),
        s.fields.get("number", 0),
        -s.regret.mean,
    )
    kept = lambda s: number is None or s.fields.get("number", number) == number
    settings = filter(kept, best_damped(settings_of(results)))
    return [_row(s) for s in sorted(settings, key=order)]


def _row(setting: Setting) -> tuple[str, ...]:
    fields = setting.fields
    return (
        setting.name,
        fields.get("samples", "none"),
        str(fields.get("number", 0)),
        _shown(setting.regret),
        "" if setting.to_grid is None else _shown(setting.to_grid),
        f"{setting.worst_gain:+.1f}",
        f"{setting.passes:.3g}",
    )


def _shown(interval: Interval) -> str:
    return f"{interval.mean:+.2f} ± {interval.half:.2f}"


def terminal_table(results: Results) -> Table:
    """The table for a terminal: weights of the `_TERMINAL` samples, and of none."""
    table = Table(box=box.SIMPLE, caption=_NOTE, caption_justify="left")
    table.add_column(COLUMNS[0], min_width=20)
    for column in COLUMNS[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for row in _rows(results, _TERMINAL):
        table.add_row(*row)
    return table


def csv_text(results: Results) -> str:
    """All settings, a line each, with accuracy and weight at every heterogeneity."""
    names = list(dict.fromkeys(cell["heterogeneity"] for cell in results["cells"]))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    measured = ("regret", "regret_half", "to_grid", "to_grid_half", "worst_gain")
    by_name = [f"{what}_{name}" for what in ("accuracy", "weight") for name in names]
    writer.writerow([*_FIELDS, *measured, "passes", *by_name])
    for s in settings_of(results):
        grid = s.to_grid or ("", "")
        each = [group[name] for group in (s.accuracies, s.weights) for name in names]
        own = [s.fields.get(name, "") for name in _FIELDS]
        writer.writerow([*own, *s.regret, *grid, s.worst_gain, s.passes, *each])
    return file.getvalue()


# --- Figures -------------------------------------------------------------------------

_TITLES = {
    "samples": (
        "Regret and the number of samples",
        "What a weight loses to the best constant weight, which is an oracle; zero is "
        "as good. Left: the samples are of the training examples; right: they are "
        "held out. Of Potara's dampings the best at each number is shown, which "
        "favours it. The bands are 95 % intervals over seeds.",
    ),
    "damping": (
        "Regret and the damping",
        "Potara's weight with relative damping on 30 samples, by what curvature it is "
        "from. Where a line is not flat, the damping is a choice that matters.",
    ),
    "heterogeneity": (
        "Gain over the better model",
        "Accuracy over the better of the federated and the local model, by how much "
        "the clients differ (30 samples). Below zero, merging has done harm.",
    ),
}
_SHOWN = ("hermite", "hermite_pooled", "hermite_bayes", "gauss_newton", "grid")
_CURVE = ("potara", "exact", "core", "diagonal")


def draw(results: Results, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes every figure; returns the files' paths."""
    makers = {
        "samples": by_samples,
        "damping": by_damping,
        "heterogeneity": by_heterogeneity,
    }
    return drawing.draw(makers, results, folder)


def _columns(titles: list[str], title: str) -> tuple[Figure, list]:
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    for axes, text in zip(panels, titles, strict=True):
        axes.set_title(text)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure, list(panels)


_KINDS = {"train": "training samples", "heldout": "held-out samples"}


def by_samples(results: Results) -> Figure:
    """Regret against the number of samples, trained on and held out."""
    settings = best_damped(settings_of(results))
    figure, panels = _columns(list(_KINDS.values()), _TITLES["samples"][0])
    entries: dict[str, Any] = {}
    for axes, kind in zip(panels, _KINDS, strict=True):
        for name, group in _lines(settings, kind).items():
            entries[name] = _line(axes, group, _look(name))
        axes.axhline(0, color="#222222", linewidth=0.8)
        axes.set_xscale("log")
        numbers = sorted({s.fields["number"] for s in settings if "number" in s.fields})
        axes.set_xticks(numbers, [str(n) for n in numbers])
        axes.minorticks_off()
        axes.set_xlabel("samples of a client")
    panels[0].set_ylabel("regret in points")
    drawing.legend(figure, entries)
    return figure


def _lines(settings: list[Setting], kind: str) -> dict[str, list[Setting]]:
    """The settings of every line, by the line's name, in order of samples."""
    own = [s for s in settings if s.fields.get("samples") == kind]
    lines = {name: [s for s in own if s.fields["estimator"] == name] for name in _SHOWN}
    for fisher in ("exact", "empirical"):
        key = ("potara", fisher, *_CURVE[2:])
        lines[f"potara, {fisher} core"] = [s for s in own if _is(s, key)]
    order = lambda s: s.fields["number"]
    return {name: sorted(group, key=order) for name, group in lines.items() if group}


def _is(setting: Setting, key: tuple) -> bool:
    names = ("estimator", "fisher", "space", "factorisation")
    return tuple(setting.fields.get(name) for name in names) == key


_NAMES = (*_SHOWN, *(f"potara, {fisher} core" for fisher in ("exact", "empirical")))


def _look(name: str) -> dict[str, Any]:
    """A line's marker and colour: its own in all panels and figures."""
    place = _NAMES.index(name)
    return {"marker": "osD^vPX"[place], "color": f"C{place}", "markersize": 4}


def _line(axes, group: list[Setting], look: dict[str, Any]):
    x = [s.fields["number"] for s in group]
    y = np.array([s.regret.mean for s in group])
    half = np.array([s.regret.half for s in group])
    (line,) = axes.plot(x, y, **look)
    band = {"color": look["color"], "alpha": 0.12, "linewidth": 0}
    axes.fill_between(x, y - half, y + half, **band)
    return line


def by_damping(results: Results) -> Figure:
    """Regret of Potara's weight against relative damping."""
    settings = [
        s
        for s in settings_of(results)
        if s.fields.get("damping") == "relative" and s.fields["number"] == 30
    ]
    figure, panels = _columns(list(_KINDS.values()), _TITLES["damping"][0])
    entries: dict[str, Any] = {}
    places: dict[str, int] = {}
    for axes, kind in zip(panels, _KINDS, strict=True):
        groups: dict[str, list[Setting]] = {}
        for s in settings:
            if s.fields["samples"] == kind:
                name = s.name.replace(f", relative {s.fields['value']:g}", "")
                groups.setdefault(name, []).append(s)
        for name, group in groups.items():
            place = places.setdefault(name, len(places))
            x = [s.fields["value"] for s in group]
            y = [s.regret.mean for s in group]
            style = "--" if "factors merged" in name else "-"
            (entries[name],) = axes.plot(
                x, y, style, marker="o", markersize=3.5, color=f"C{place}"
            )
        axes.axhline(0, color="#222222", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("relative damping")
    panels[0].set_ylabel("regret in points")
    drawing.legend(figure, entries)
    return figure


def by_heterogeneity(results: Results) -> Figure:
    """Gain over the better model at every heterogeneity."""
    names = list(dict.fromkeys(cell["heterogeneity"] for cell in results["cells"]))
    better = {
        name: _mean(results, name, lambda c: max(c["federated"], c["local"]))
        for name in names
    }
    oracle = {
        name: _mean(results, name, lambda c: c["best_constant"]) for name in names
    }
    figure, panels = _columns(list(_KINDS.values()), _TITLES["heterogeneity"][0])
    settings = best_damped(settings_of(results))
    entries: dict[str, Any] = {}
    for axes, kind in zip(panels, _KINDS, strict=True):
        lines = {
            n: [s for s in g if s.fields["number"] == 30]
            for n, g in _lines(settings, kind).items()
        }
        for name, group in lines.items():
            y = [100 * (group[0].accuracies[n] - better[n]) for n in names]
            (entries[name],) = axes.plot(names, y, **_look(name))
        y = [100 * (oracle[n] - better[n]) for n in names]
        (entries["best constant (oracle)"],) = axes.plot(names, y, "k:", linewidth=1)
        axes.axhline(0, color="#222222", linewidth=0.8)
        axes.set_xlabel("Dirichlet concentration, or tasks")
    panels[0].set_ylabel("gain in points")
    drawing.legend(figure, entries)
    return figure


def _mean(results: Results, name: str, value: Callable[[dict], float]) -> float:
    cells = [c for c in results["cells"] if c["heterogeneity"] == name]
    return float(np.mean([value(cell) for cell in cells]))


# --- The page ------------------------------------------------------------------------


def render(results: Results, figures: list[pathlib.Path]) -> str:
    """The page as HTML."""
    lines = [page.line(row) for row in _rows(results)]
    cells = [page.line(row) for row in _cells(results)]
    heads = ("Heterogeneity", "Federated", "Local", "Best constant", "Best per client")
    body = [
        page.paragraphs([_NOTE], kind="note"),
        *(page.figure(path, *_TITLES[path.stem]) for path in figures),
        "<h2>The models and the oracles</h2>",
        page.table(heads, cells),
        "<h2>All weights</h2>",
        page.table(COLUMNS, lines),
    ]
    title = f"Which merge weight: {results['experiment']}"
    return page.document(
        title, "\n".join(body), results["settings"], results["versions"]
    )


def _cells(results: Results) -> list[tuple[str, ...]]:
    names = list(dict.fromkeys(cell["heterogeneity"] for cell in results["cells"]))
    keys = ("federated", "local", "best_constant", "best_per_client")
    shown = lambda name, key: f"{100 * _mean(results, name, lambda c: c[key]):.1f}"
    return [(label(name), *(shown(name, key) for key in keys)) for name in names]
