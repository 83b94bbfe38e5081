"""A study's estimates of merge weights, aggregated over cells.

`results["cells"]` has one record per heterogeneity and seed, with the scores of both
models, of the oracles, and of every estimate, and the name of the default weight. A
*setting* is an estimate without its cell; its *regret* is its score less that of the
best constant weight of the cell, which is an oracle. Differences are paired within a
cell, averaged over heterogeneities, and given with a 95 % t-interval over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special  # pyrefly: ignore  # scipy has no stubs

from potara_jax.reports.formats import metric_of
from potara_jax.reports.summary import Record, Results, mean_of

FIELDS = (
    *("estimator", "fisher", "space", "factorisation", "damping", "value", "merge"),
    *("samples", "number"),
)


class Interval(NamedTuple):
    """A mean over seeds, and half the width of its 95 % interval (0 for one seed)."""

    mean: float
    half: float


class Setting(NamedTuple):
    """One way to weigh, over all cells; differences are as they are shown, in points.

    Attributes:
      fields: the estimate's, by name.
      regret: to the best constant weight.
      balanced: the regret under equal shares of each client's classes, to the best
        constant weight under them; None where examples have no classes.
      to_default: to the default weight on as many held-out samples; None without
        samples, or where the default is not known.
      worst_gain: over the better of both models, where it is least.
      regrets: the regret by heterogeneity.
      weights: mean weight by heterogeneity.
      scores: mean score by heterogeneity.
      passes: forward-backward passes per sample.
    """

    fields: dict[str, Any]
    regret: Interval
    balanced: Interval | None
    to_default: Interval | None
    worst_gain: float
    regrets: dict[str, float]
    weights: dict[str, float]
    scores: dict[str, float]
    passes: float

    @property
    def name(self) -> str:
        """Everything but the samples, in words."""
        return name_of(self.fields)


def name_of(fields: dict[str, Any], *, damped: bool = True) -> str:
    """An estimate's setting in words, without its samples; optionally its damping."""
    parts = [fields["estimator"]]
    if fields.get("fisher"):
        kind = "" if fields["factorisation"] == "diagonal" else " kronecker"
        parts.append(f"{fields['fisher']}{kind} {fields['space']}")
        parts += [f"{fields['damping']} {fields['value']:g}"] * damped
    if fields.get("merge") == "factor":
        parts.append("factors merged")
    return ", ".join(parts)


# --- Aggregation ---------------------------------------------------------------------

Estimates = list[tuple[Record, Record]]  # (cell, estimate) pairs of one setting


def settings_of(results: Results) -> list[Setting]:
    """All settings, in the order of their records."""
    groups: dict[tuple[Any, ...], Estimates] = {}
    for cell in results["cells"]:
        for estimate in cell["estimates"]:
            key = tuple(estimate.get(name) for name in FIELDS)
            groups.setdefault(key, []).append((cell, estimate))
    defaults = {
        (_place(cell), e["number"]): e["mean"]
        for cell in results["cells"]
        for e in cell["estimates"]
        if e["estimator"] == cell.get("default") and e["samples"] == "heldout"
    }
    scale = metric_of(results).scale
    return [_setting(key, pairs, defaults, scale) for key, pairs in groups.items()]


def _place(cell: Record) -> tuple[str, int]:
    return cell["heterogeneity"], cell["seed"]


def _setting(
    key: tuple[Any, ...], pairs: Estimates, defaults: dict[Any, float], scale: float
) -> Setting:
    fields = {n: v for n, v in zip(FIELDS, key, strict=True) if v is not None}

    def regret(cell: Record, estimate: Record) -> float:
        return scale * (estimate["mean"] - cell["best_constant"])

    def gain(cell: Record, estimate: Record) -> float:
        return scale * (
            estimate["mean"] - float(np.fmax(cell["federated"], cell["local"]))
        )

    return Setting(
        fields,
        over_seeds([(c["seed"], regret(c, e)) for c, e in pairs]),
        _balanced(pairs, scale),
        _to_default(fields, pairs, defaults, scale),
        min(_by_heterogeneity(pairs, gain).values()),
        _by_heterogeneity(pairs, regret),
        _by_heterogeneity(pairs, lambda c, e: e["weight"]),
        _by_heterogeneity(pairs, lambda c, e: e["mean"]),
        pairs[0][1]["passes"],
    )


def _balanced(pairs: Estimates, scale: float) -> Interval | None:
    if not all(cell.get("balanced") for cell, _ in pairs):
        return None
    return over_seeds(
        [
            (c["seed"], scale * (e["balanced"] - c["balanced"]["best_constant"]))
            for c, e in pairs
        ]
    )


def _to_default(
    fields: dict[str, Any], pairs: Estimates, defaults: dict[Any, float], scale: float
) -> Interval | None:
    beside = [defaults.get((_place(c), fields.get("number"))) for c, _ in pairs]
    if None in beside:  # as in a study of an earlier version
        return None
    return over_seeds(
        [
            (cell["seed"], scale * (estimate["mean"] - default))
            for (cell, estimate), default in zip(pairs, beside, strict=True)
        ]
    )


def over_seeds(differences: Sequence[tuple[int, float]]) -> Interval:
    """The mean over heterogeneities of each seed, then over seeds.

    Args:
      differences: a seed and its value, one a cell.
    """
    seeds: dict[int, list[float]] = {}
    for seed, value in differences:
        seeds.setdefault(seed, []).append(value)
    means = [mean_of(values) for values in seeds.values()]
    if len(means) < 2:
        return Interval(means[0], 0.0)
    error = float(np.std(means, ddof=1)) / np.sqrt(len(means))
    return Interval(
        mean_of(means), float(special.stdtrit(len(means) - 1, 0.975) * error)
    )


def _by_heterogeneity(
    pairs: Estimates, value: Callable[[Record, Record], float]
) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for cell, estimate in pairs:
        groups.setdefault(cell["heterogeneity"], []).append(value(cell, estimate))
    return {name: mean_of(values) for name, values in groups.items()}


def rank(setting: Setting) -> float:
    """By what settings are ordered: the regret, lowest where a model diverged."""
    regret = setting.regret.mean
    return regret if math.isfinite(regret) else -math.inf


def best_damped(settings: Sequence[Setting]) -> list[Setting]:
    """Of settings that differ in the damping alone, the one of least regret."""
    best: dict[tuple[tuple[str, str], ...], Setting] = {}
    for setting in settings:
        fields = setting.fields.items()
        undamped = [(k, str(v)) for k, v in fields if k not in ("damping", "value")]
        key = tuple(sorted(undamped))
        if key not in best or rank(setting) > rank(best[key]):
            best[key] = setting
    return list(best.values())


def mean_over_cells(
    results: Results, heterogeneity: str, value: Callable[[Record], float]
) -> float:
    """The mean over the cells of one heterogeneity."""
    cells = [c for c in results["cells"] if c["heterogeneity"] == heterogeneity]
    return mean_of([value(cell) for cell in cells])


def heterogeneities(results: Results) -> list[str]:
    """The names of all heterogeneities, in order."""
    return list(dict.fromkeys(cell["heterogeneity"] for cell in results["cells"]))
