"""Which merge weight is best: every weight on the same pairs of models.

For every heterogeneity and seed, a federated and a local model are trained as in the
experiment. Every weight looks at the first 5, 10, 30 or 100 training samples, and at as
many held-out ones. A weight's score is the test accuracy along the segment between the
models, which is computed at some points and interpolated; weights per module are merged
and tested directly. Where examples have classes, a second score gives each client's
classes equal shares: what a weight gains in the first alone, it gains from the shares.

The exact Fisher information takes a gradient a class. It is measured only where the
experiment uses it (`merging.curvature exact`).

The seeds differ from those of the experiment's table, so a choice made here is reported
on other clients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax import merging, reports
from potara_jax.adapters.lora import Adapter
from potara_jax.clients.axis import Layout
from potara_jax.clients.compiling import jit
from potara_jax.clients.task import Task
from potara_jax.evaluation.metrics import Scores
from potara_jax.experiment import federating, trials
from potara_jax.experiment.cell import parent_phases, train_parents
from potara_jax.experiment.context import Context, heldout_samples, training_samples
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.label_prior import as_set, label_prior_of
from potara_jax.experiment.merges import (
    Pair,
    check_bounds,
    estimator,
    likelihood,
    program_arguments,
)
from potara_jax.experiment.methods import Weighing
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.rows import (
    largest_class_of,
    mean_accuracy,
    mean_and_worst,
    score,
)
from potara_jax.jobs.job import Record
from potara_jax.merging import Client, Estimator, registry
from potara_jax.merging.curvature import real
from potara_jax.merging.damping import DAMPINGS
from potara_jax.merging.programs import Clients
from potara_jax.merging.registry import WeightEntry, Work
from potara_jax.reports import document
from potara_jax.reports.document import Report
from potara_jax.reports.formats import Metric
from potara_jax.runs.store import Store

NUMBERS = (5, 10, 30, 100)
_FEW = NUMBERS[:3]
_DAMPINGS = (
    *(("relative", value) for value in (0.01, 0.1, 0.3, 1.0, 3.0)),
    *(("harmonic", value) for value in (0.1, 1.0)),
    *(("quantile", value) for value in (0.05, 0.5)),
    *(("laplace", value) for value in (1.0, 100.0)),
    ("evidence", 1.0),
)
_BIAS_AWARE = (("laplace", 1.0), ("laplace", 100.0), ("evidence", 1.0))
_ALL_DAMPINGS = (*_DAMPINGS, *((f"{name} + bias", v) for name, v in _BIAS_AWARE))
_SPACES = ("delta", "factor")


@dataclasses.dataclass(frozen=True)
class Study:
    """Compare every merge weight with the default one and the oracles."""

    name: ClassVar[str] = "study"
    presets: ClassVar[Mapping[str, Any]] = {
        "cells.seeds": (10, 11, 12, 13, 14),
        "merging.samples": 100,
        "merging.grid_points": 21,
    }

    def check(self, experiment: Experiment) -> None:
        """Nothing to check."""

    def check_problem(self, experiment: Experiment, problem: Problem) -> None:
        """Raise `ValueError` if the federated model cannot be merged, or weighed."""
        federating.check_mergeable(experiment, problem)
        every_weight = experiment.set({"merging.methods": ()})
        trials.check_methods(every_weight, problem)

    def rounds(self, experiment: Experiment) -> int:
        """The federated and the local ones."""
        return experiment.federated.rounds + experiment.local.rounds

    def run_cell(self, at: Context) -> Record:
        """Train both models of a cell, compute all weights, and score them."""
        phases = at.programs.once("parents", lambda: parent_phases(at))
        federated, local = train_parents(at, phases)
        parents = federated.models, local.models
        pair = as_set(at, parents)
        curves = {space: curve_of(at, pair, space) for space in _SPACES}
        exact = curves["delta"]
        return {
            **at.cell._asdict(),
            "points": _points(at.experiment).tolist(),
            **_bounds(exact.accuracy),
            "balanced": _bounds(exact.balanced) or None,
            **_with_prior(at, parents),
            **_largest_class(at),
            "default": registry.default(logits=at.problem.task.logits is not None),
            "estimates": _estimates(at, pair, curves),
        }

    def summary(self, at: Context, record: Record) -> str:
        """What a weight can gain."""
        parents = record["federated"], record["local"]
        metric = Metric(*at.problem.task.metric)
        gain = metric.difference(record["best_constant"] - np.fmax(*parents))
        return f"{at.cell.name}: the best constant weight beats both models by {gain}"

    def results(self, records: list[Record]) -> Record:
        """All cells."""
        return {"cells": records}

    def files(self, results: Record) -> Mapping[str, str]:
        """Every estimate."""
        return {"study.csv": reports.study.csv_text(results)}

    def tables(self, results: Record, store: Store) -> list[document.Table]:
        """What a terminal shows."""
        return reports.study.brief(results)

    def report(self, results: Record, store: Store, figures: Path) -> Report:
        """The weights in order of their regret, and figures."""
        return reports.study.report(results, figures)


# --- What is weighed -----------------------------------------------------------------


class _Weighed(NamedTuple):
    """One way to weigh, as records have it."""

    fields: dict[str, str]
    passes: float

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces that it is merged in."""
        factor = self.fields.get("space") == "factor"
        return _SPACES if factor else ("delta",)


class _Together(NamedTuple):
    """Ways to weigh that measure together.

    The `program` gives weights of each, for `numbers` of samples: `[C, n]`, or
    `[C, n, D]` at all dampings.
    """

    name: str
    weighed: tuple[_Weighed, ...]
    program: Callable[..., Any]
    numbers: tuple[int, ...]
    heldout_only: bool = False


class _Curvature(NamedTuple):
    """How Potara's curvature is measured."""

    fisher: str
    space: str
    factorisation: str


_CURVATURES = {
    _Curvature("exact", "core", "diagonal"): NUMBERS,
    _Curvature("exact", "factor", "diagonal"): _FEW,
    _Curvature("exact", "core", "kronecker"): _FEW,
    _Curvature("empirical", "core", "diagonal"): _FEW,
    _Curvature("empirical", "factor", "diagonal"): _FEW,
    _Curvature("sampled", "core", "diagonal"): _FEW,
    _Curvature("sampled", "factor", "diagonal"): _FEW,
}


def _all_weighed(at: Context) -> list[_Together]:
    return [*_by_curvature(at), *_by_loss(at)]


def _by_curvature(at: Context) -> list[_Together]:
    """Potara's weights, of every curvature that the task has."""
    task, weighed = at.problem.task, []
    for curvature, numbers in _CURVATURES.items():
        if not _is_measured(curvature, at.experiment, task):
            continue
        program = _closed_form(task, curvature, numbers, at.programs.layout)
        fields = {"estimator": "potara", **curvature._asdict()}
        passes = registry.weights()["potara"].passes(_work(at, curvature.fisher))
        one = _Weighed(fields, passes)
        weighed.append(_Together(" ".join(curvature), (one,), program, numbers))
    return weighed


def _is_measured(curvature: _Curvature, experiment: Experiment, task: Task) -> bool:
    """Whether a task has this Fisher information; one with a loss has the empirical.

    The exact one takes a gradient a class, so that only experiments which use it
    measure it.
    """
    if task.logits is None:
        return curvature.fisher == "empirical"
    if curvature.fisher != "exact":
        return True
    return experiment.merging.curvature == "exact" and not task.sequences


def _by_loss(at: Context) -> list[_Together]:
    """Every registered weight that looks at losses and lies on the segment.

    One program measures all, so that a loss which several of them look at is computed
    once; costly ones look at fewer samples.
    """
    suited = {
        name: entry
        for name, entry in registry.weights().items()
        if _has_a_place(entry, at.problem.task)
    }
    together = []
    for costly in (False, True):
        names = [name for name, entry in suited.items() if entry.costly is costly]
        if not names:
            continue
        numbers = _FEW if costly else NUMBERS
        estimators = [estimator(at.programs, Weighing(name)) for name in names]
        weighed = tuple(
            _Weighed({"estimator": name}, suited[name].passes(_work(at)))
            for name in names
        )
        program = _nested(estimators, numbers, at.programs.layout)
        name = "costly losses" if costly else "losses"
        together.append(_Together(name, weighed, program, numbers, costly))
    return together


def _has_a_place(entry: WeightEntry, task: Task) -> bool:
    """Whether a weight looks at losses and lies on the segment."""
    suits = entry.suits(logits=task.logits is not None, one_label=not task.sequences)
    return suits and entry.needs in ("loss", "logits") and entry.space == "delta"


def _work(at: Context, fisher: str = "exact") -> Work:
    """What the cost of a weight depends on."""
    adapter = jax.eval_shape(at.problem.adapter, at.key)
    return Work(
        classes=at.federation.proportions.shape[1] if fisher == "exact" else 1,
        modules=len(adapter),
        points=at.experiment.merging.grid_points,
    )


def _closed_form(
    task: Task, curvature: _Curvature, numbers: tuple[int, ...], layout: Layout
) -> Callable[..., Any]:
    """Potara's weights `[C, n, D]` from one curvature, at every damping, in a list."""
    dampings = [DAMPINGS[name](value) for name, value in _DAMPINGS]
    bias_aware = [DAMPINGS[name](value) for name, value in _BIAS_AWARE]
    potara = merging.potara(
        likelihood(curvature.fisher, task),
        damping=dampings[0],
        space=curvature.space,
        factorisation=curvature.factorisation,
    )

    def weights(client: Client) -> list[jax.Array]:
        measured, n = potara.measure(client).curvature, client.trained_on
        plain = [merging.potara_weight(measured, d, n) for d in dampings]
        aware = [merging.bias_aware_weight(measured, d, n) for d in bias_aware]
        return [jnp.stack([*plain, *aware])]

    return merging.over_each(_by_number(weights, numbers), layout=layout)


def _by_number(
    measure: Callable[[Client], Any], numbers: tuple[int, ...]
) -> Callable[[Client], Any]:
    """Measurements on the first 5, 10, ... samples; gradients are computed once."""

    def measured(client: Client) -> Any:
        place = jnp.arange(client.weight.shape[0])

        def on_first(number: jax.Array) -> Any:
            weight = client.weight * (place < number)
            return measure(client._replace(weight=weight))

        return jax.vmap(on_first)(jnp.array(numbers))

    return measured


def _nested(
    estimators: Sequence[Estimator], numbers: tuple[int, ...], layout: Layout
) -> Callable[..., Any]:
    """Estimators' weights `[C, n]` each, on the first samples of every number."""
    all_measure = lambda client: [one.measure(client) for one in estimators]
    measure = merging.over_each(_by_number(all_measure, numbers), layout=layout)

    @jit
    def program(*arguments: Any) -> list[Any]:
        counts = _counts(Clients(*arguments).samples, numbers)
        every = zip(estimators, measure(*arguments), strict=True)
        return [_decided(one, x, counts) for one, x in every]

    return program


def _counts(samples: merging.Samples, numbers: tuple[int, ...]) -> jax.Array:
    """How many of the first 5, 10, ... samples of a client count, `[C, n]`."""
    kept = jax.vmap(real)(*samples)
    first = jnp.arange(kept.shape[1])[:, None] < jnp.array(numbers)
    return jnp.dot(kept, first.astype(jnp.float32), precision="highest")


def _decided(estimator: Estimator, measured: Any, counts: jax.Array) -> Any:
    """An estimator's weights from what clients measured on `[C, n]` samples."""
    if estimator.decide is None:
        return measured.weight
    return jax.vmap(estimator.decide, in_axes=1, out_axes=1)(measured, counts).weight


# --- A cell --------------------------------------------------------------------------


def _points(experiment: Experiment) -> np.ndarray:
    return np.linspace(0, 1, experiment.merging.grid_points)


def curve_of(at: Context, pair: Pair, space: str) -> Scores:
    """Every client's test scores along the segment, `[T, C]`.

    Args:
      at: the cell.
      pair: its federated and local models.
      space: where they are merged.
    """

    def scores(weight: np.float32) -> Scores:
        return _scores_once(at, pair, space, jnp.full(at.clients, weight), f"{weight}")

    points = list(_points(at.experiment).astype(np.float32))
    all_scores = at.each(f"scores of {space} merges", scores, points)
    return jax.tree.map(lambda *x: np.stack(x), *all_scores)


def _bounds(scores: jax.Array | None) -> Record:
    """What a score `[T, C]` shows of both models and of the oracles."""
    if scores is None:
        return {}
    curve = np.asarray(scores)
    return {
        "curve": curve.mean(1).tolist(),
        "federated": float(curve[-1].mean()),
        "local": float(curve[0].mean()),
        "best_constant": float(np.fmax.reduce(curve.mean(1))),
        "best_per_client": float(np.fmax.reduce(curve).mean()),
    }


def _with_prior(at: Context, parents: Pair) -> Record:
    """Both scores of the federated model corrected by class shares, if there are any.

    The second is under equal shares of each client's classes.
    """
    prior = label_prior_of(at, parents)
    if prior is None:
        return {}
    corrected, _ = prior.correct(parents)
    scores = at.once_measured("scores with prior", lambda: score(at, corrected))
    means = mean_and_worst(at, scores)
    return {"with_prior": means["mean"], "balanced_with_prior": means["balanced_mean"]}


def _scores_once(
    at: Context, pair: Pair, space: str, weight: Any, title: str
) -> Scores:
    """Every client's test scores with a weight, `[C]`; kept under its title."""
    scores = at.once_measured(
        f"scores {space} {title}",
        lambda: score(at, _merged(at, pair, space, weight)),
    )
    return jax.tree.map(lambda x: np.asarray(x, np.float64), scores)


def _merged(at: Context, pair: Pair, space: str, weight: Any) -> Adapter:
    program = at.programs.once(
        ("study", space),
        lambda: merging.combine(space=space, layout=at.programs.layout),
    )
    return program(*arguments_of(at, pair, "heldout"), weight)


def arguments_of(at: Context, pair: Pair, samples: str, number: int = 1) -> tuple:
    """The arguments of every program, with the first samples of a client.

    Args:
      at: the cell.
      pair: its federated and local models.
      samples: `train` or `heldout`.
      number: of samples.
    """
    drawn = {"heldout": heldout_samples, "train": training_samples}[samples](at)
    first = jax.tree.map(lambda x: x[:, :number], drawn.examples)
    few = merging.Samples(first, jnp.minimum(drawn.count, number))
    return program_arguments(at, pair, few)


Curves = dict[str, Scores]


def _estimates(at: Context, pair: Pair, curves: Curves) -> list[Record]:
    """Every estimate of the cell, with the accuracy that it leads to."""
    half, uniform = np.full(at.clients, 0.5), {"estimator": "uniform", "passes": 0.0}
    estimates = [_read_off(uniform, half, curves["delta"])]
    weighed = at.programs.once("weighed", lambda: _all_weighed(at))
    for samples in ("train", "heldout"):
        trained = samples == "train"
        usable = [each for each in weighed if not (trained and each.heldout_only)]
        weights_of = partial(_weights_once, at, pair, samples)
        found = at.each(f"weights from {samples} samples", weights_of, usable)
        for together, every in zip(usable, found, strict=True):
            for one, weights in zip(together.weighed, every, strict=True):
                for number, some in _by_numbers(one, together.numbers, weights):
                    said = {"samples": samples, "number": number}
                    estimates += _scored(at, pair, curves, one, said, some)
    return estimates


def _by_numbers(
    one: _Weighed, numbers: tuple[int, ...], weights: Any
) -> Iterator[tuple[int, Any]]:
    """A way's weights `[C, n, ...]` by the number of samples, checked."""
    check_bounds(one.fields["estimator"], weights)
    for i, number in enumerate(numbers):
        yield number, jax.tree.map(lambda w, i=i: w[:, i], weights)


def _weights_once(at: Context, pair: Pair, samples: str, together: _Together) -> Any:
    """Weights of each way to weigh, on the host."""
    arguments = arguments_of(at, pair, samples, max(together.numbers))
    name = f"weights {together.name} {samples}"
    return jax.device_get(at.once_measured(name, lambda: together.program(*arguments)))


def _scored(
    at: Context,
    pair: Pair,
    curves: Curves,
    weighed: _Weighed,
    said: Record,
    weights: Any,
) -> list[Record]:
    """Records of one estimator's weights: `[C]`, `[C, D]`, or by module."""
    fields = {**weighed.fields, **said, "passes": float(weighed.passes)}
    if isinstance(weights, dict):
        scores = _scores_once(at, pair, "delta", weights, f"{fields}")
        return [_estimate(fields, np.mean(list(weights.values()), 0), scores)]
    if weights.ndim == 1:
        return [_read_off(fields, weights, curves["delta"])]
    return [
        _read_off(
            fields | {"damping": name, "value": value, "merge": space},
            weights[:, d],
            curves[space],
        )
        for d, (name, value) in enumerate(_ALL_DAMPINGS)
        for space in weighed.spaces
    ]


def _read_off(fields: Record, weights: np.ndarray, curves: Scores) -> Record:
    """An estimate whose scores are interpolated along the segment."""
    scores = jax.tree.map(partial(read_off, weights), curves)
    return _estimate(fields, weights, scores)


def read_off(weights: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Clients' scores at their weights, `[C]`, interpolated along the segment.

    Args:
      weights: `[C]`.
      curve: scores at equally spaced weights, `[T, C]`.
    """
    points, both = np.linspace(0, 1, len(curve)), zip(weights, curve.T, strict=True)
    return np.array([np.interp(w, points, scores) for w, scores in both])


def _estimate(fields: Record, weights: np.ndarray, scores: Scores) -> Record:
    """A weight's record: its mean scores `[C]`, and its mean."""
    balanced = scores.balanced
    second = {} if balanced is None else {"balanced": float(balanced.mean())}
    mean = float(scores.accuracy.mean())
    return {**fields, "mean": mean, **second, "weight": float(np.mean(weights))}


def _largest_class(at: Context) -> Record:
    """What always answering with a client's largest class gives, if there are any."""
    scores = largest_class_of(at, at.federation.train, at.federation.test)
    return {"largest_class": mean_accuracy(at, scores)} if scores else {}
