"""Results over seeds: one summary per method and heterogeneity.

Everything reads `results`, the dictionary of `results.json`. Its `methods` are records,
one per method, heterogeneity and seed; its `diagnostics` one per heterogeneity and
seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Results = dict[str, Any]
Record = dict[str, Any]
Groups = dict[str, dict[str, list[Record]]]

PARENTS = ("federated", "local")
LARGEST_CLASS = "largest class"  # a row that is no model


class Summary(NamedTuple):
    """One method at one heterogeneity: means over seeds, of means over clients.

    Attributes:
      heterogeneity: name of the federation.
      method: name of the method.
      oracle: whether the method looks at test data.
      seeds: number of seeds.
      mean: score; higher is better, so a loss counts as minus itself.
      spread: sample standard deviation of `mean` over seeds, 0 for one seed.
      worst_decile: score of the worst tenth of the clients.
      balanced: accuracy under equal shares of each client's classes; None where
        examples have no classes.
      gain: over the better of both `PARENTS` in each seed; None if one is missing.
      gain_spread: sample standard deviation of `gain` over seeds.
      weight: mean merge weight; None for a method that has none.
      bytes_up: sent by all clients.
      bytes_down: received by all clients.
      local_steps: optimiser steps of one client.
      inference_parameters: what a client's model adds to the base.
      seconds: of training.
    """

    heterogeneity: str
    method: str
    oracle: bool
    seeds: int
    mean: float
    spread: float
    worst_decile: float
    balanced: float | None
    gain: float | None
    gain_spread: float | None
    weight: float | None
    bytes_up: float
    bytes_down: float
    local_steps: float
    inference_parameters: float
    seconds: float


def by_heterogeneity(results: Results) -> Groups:
    """The records of every seed, `{heterogeneity: {method: [record]}}`, in order."""
    groups: Groups = {}
    for record in results["methods"]:
        methods = groups.setdefault(record["heterogeneity"], {})
        methods.setdefault(record["method"], []).append(record)
    return groups


def of_seeds(results: Results, key: str) -> dict[str, list[Any]]:
    """One diagnostic of every seed, `{heterogeneity: [value]}`, if recorded."""
    groups: dict[str, list[Any]] = {}
    for entry in results["diagnostics"]:
        if entry.get(key):
            groups.setdefault(entry["heterogeneity"], []).append(entry[key])
    return groups


def summarise(results: Results) -> list[Summary]:
    """A summary of every method at every heterogeneity, in the order of the records."""
    return [
        _summary(records, methods)
        for methods in by_heterogeneity(results).values()
        for records in methods.values()
    ]


def _summary(records: list[Record], methods: dict[str, list[Record]]) -> Summary:
    first, mean = records[0], lambda name: mean_of([r[name] for r in records])
    gains = _gains(records, methods)
    return Summary(
        heterogeneity=first["heterogeneity"],
        method=first["method"],
        oracle=first["oracle"],
        seeds=len(records),
        mean=mean("mean"),
        spread=spread([record["mean"] for record in records]),
        worst_decile=mean("worst_decile"),
        balanced=mean_if_known([r.get("balanced_mean") for r in records]),
        gain=mean_of(gains) if gains else None,
        gain_spread=spread(gains) if gains else None,
        weight=_mean_weight(records),
        bytes_up=mean("bytes_up"),
        bytes_down=mean("bytes_down"),
        local_steps=mean("local_steps"),
        inference_parameters=mean("inference_parameters"),
        seconds=mean("seconds"),
    )


def mean_of(values: list[float]) -> float:
    """The mean, as a Python number."""
    return float(np.mean(values))


def mean_if_known(values: Sequence[float | None]) -> float | None:
    """The mean; None if a value is missing."""
    known = [value for value in values if value is not None]
    return mean_of(known) if known and len(known) == len(values) else None


def spread(values: list[float]) -> float:
    """The sample standard deviation, 0 for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _gains(records: list[Record], methods: dict[str, list[Record]]) -> list[float]:
    """Each seed's score less that of its better parent, for seeds that have both."""
    parents = [{r["seed"]: r["mean"] for r in methods.get(p, [])} for p in PARENTS]
    return [
        record["mean"] - _highest([parent[record["seed"]] for parent in parents])
        for record in records
        if all(record["seed"] in parent for parent in parents)
    ]


def _highest(scores: list[float]) -> float:
    """The highest score of those that are finite."""
    return max(filter(math.isfinite, scores), default=math.nan)


def _mean_weight(records: list[Record]) -> float | None:
    weights = [client_weights(record["weights"]) for record in records]
    known = [weight for weight in weights if weight is not None]
    return float(np.mean(known)) if len(known) == len(weights) else None


def client_weights(weights: list | dict | None) -> np.ndarray | None:
    """One merge weight per client, `[C]`: the mean over modules if each has one."""
    if weights is None:
        return None
    if isinstance(weights, dict):
        return np.mean(np.asarray(list(weights.values()), np.float64), axis=0)
    return np.asarray(weights, np.float64)


def grouped(summaries: list[Summary]) -> dict[str, list[Summary]]:
    """`{heterogeneity: summaries}`, in order."""
    groups: dict[str, list[Summary]] = {}
    for summary in summaries:
        groups.setdefault(summary.heterogeneity, []).append(summary)
    return groups


def ranked(results: Results) -> list[Summary]:
    """All summaries, in each heterogeneity the best first."""
    groups = grouped(summarise(results)).values()
    return [s for group in groups for s in sorted(group, key=_place)]


def _place(summary: Summary) -> tuple[bool, float]:
    """Sorts the best first, and those that diverged last."""
    return not math.isfinite(summary.mean), -summary.mean


def best(summaries: list[Summary]) -> list[Summary]:
    """The best, several if they tie, without oracles and methods that diverged."""
    fair = [s for s in summaries if not s.oracle and math.isfinite(s.mean)]
    top = max((summary.mean for summary in fair), default=0.0)
    return [summary for summary in fair if summary.mean == top]


def over_seeds(summaries: list[Summary]) -> str:
    """Whether the numbers are of one seed, or means with their spread over several."""
    seeds = max((summary.seeds for summary in summaries), default=0)
    return f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
