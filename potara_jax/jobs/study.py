"""Which merge weight is best: every estimator on the same pairs of models.

    potara study digits                     (or: make study)

For every heterogeneity and seed a federated and a local model are trained as in the
experiment, and every way to weigh looks at the first 5, 10, 30 or 100 samples, once of
those that training has seen and once of held-out ones. A weight is scored on the test
examples by the accuracy along the segment, which is computed at some points and
interpolated in between; weights a module or parameter are merged and tested themselves.

The seeds are not those of the experiment's own table, so what is chosen here is chosen
on other clients than it is reported on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax import merging
from potara_jax.clients.task import Task
from potara_jax.evaluation.metrics import evaluator
from potara_jax.experiment.cell import train_parents
from potara_jax.experiment.context import Context, heldout, score, training
from potara_jax.experiment.federating import measuring_layout
from potara_jax.experiment.phases import Phase
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.programs import parents
from potara_jax.experiment.recipes import LEARNED, one_example
from potara_jax.experiments.digits import Digits
from potara_jax.merging import Client, Estimator
from potara_jax.merging.likelihoods import LIKELIHOODS
from potara_jax.merging.weights import DAMPINGS

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
_CURVATURES = {
    ("exact", "core", "diagonal"): NUMBERS,
    ("exact", "factor", "diagonal"): _FEW,
    ("exact", "core", "kronecker"): _FEW,
    ("empirical", "core", "diagonal"): _FEW,
    ("empirical", "factor", "diagonal"): _FEW,
    ("sampled", "core", "diagonal"): _FEW,
    ("sampled", "factor", "diagonal"): _FEW,
}
_COSTLY = ("learned", "gauss_newton")  # on held-out samples alone


@dataclasses.dataclass(frozen=True)
class StudyDigits(Digits):
    """Every merge weight on the digits, against grid search and the oracles."""

    out: Path = Path("runs/study-digits")
    """Run folder. A finished study is shown again, an unfinished one is continued."""
    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    """Seeds of the study; not those of the experiment's own table."""
    heterogeneity: tuple[str, ...] = ("0.05", "0.1", "0.3", "0.5", "1", "tasks")
    """Dirichlet concentrations of the clients' classes, and `tasks`."""
    samples: int = 100
    """Samples of a client, of which weights look at the first 5, 10, 30 or all."""
    grid_points: int = 21
    """Merge weights of the grid, and of the accuracy along the segment."""


class Weigh(NamedTuple):
    """A program to weights `[C, n]` or `[C, n, D]`, for `numbers` of samples."""

    program: Callable
    numbers: tuple[int, ...]


class Programs(NamedTuple):
    """Compiled programs of a study; `weigh` by the fields of an estimate."""

    federated: Phase
    local: Phase
    merge: dict[str, Callable]
    weigh: dict[tuple, Weigh]
    evaluate: Callable


def make_programs(settings: StudyDigits, problem: Problem) -> Programs:
    """All programs of a study."""
    task = problem.task
    federated, local = parents(settings, problem)
    layout = measuring_layout(settings)
    weigh = {
        ("potara", *key): Weigh(_closed(task, key, numbers, layout), numbers)
        for key, numbers in _CURVATURES.items()
    }
    for name, estimator in _by_loss(task, settings).items():
        numbers = _FEW if name in _COSTLY else NUMBERS
        weigh[(name,)] = Weigh(_nested(estimator, numbers, layout), numbers)
    return Programs(
        federated=federated,
        local=local,
        merge={
            space: merging.combine(space=space, layout=layout)
            for space in ("delta", "factor")
        },
        weigh=weigh,
        evaluate=evaluator(task, layout=layout),
    )


def _by_loss(task: Task, settings) -> dict[str, Estimator]:
    points = settings.grid_points
    return {
        "hermite": merging.hermite(task.loss),
        "hermite_pooled": merging.hermite_pooled(task.loss),
        "hermite_bayes": merging.hermite_bayes(task.loss),
        "grid": merging.grid(task.loss, points=points),
        "grid_pooled": merging.grid_pooled(task.loss, points=points),
        "soup": merging.soup(task.loss),
        "learned": merging.learned(task.loss, **LEARNED),
        "gauss_newton": merging.gauss_newton(task.logits),
    }


def _closed(task: Task, key: tuple[str, str, str], numbers, layout):
    """Potara's weights `[C, n, D]` from one curvature, at every damping."""
    fisher, space, factorisation = key
    likelihood = LIKELIHOODS[fisher](one_example(task.logits))
    made = lambda names: [DAMPINGS[name](value) for name, value in names]
    estimator = merging.potara(
        likelihood, made(_DAMPINGS)[0], space=space, factorisation=factorisation
    )

    def weights(client: Client):
        found, n = estimator.measure(client).curvature, client.trained_on
        plain = [merging.potara_weight(found, d, n) for d in made(_DAMPINGS)]
        aware = [merging.bias_aware_weight(found, d, n) for d in made(_BIAS_AWARE)]
        return jnp.stack([*plain, *aware])

    return merging.over_each(_by_number(weights, numbers), layout=layout)


def _by_number(measure: Callable[[Client], Any], numbers) -> Callable[[Client], Any]:
    """What is measured on the first 5, 10, ... samples; gradients are taken once."""

    def measured(client: Client):
        place = jnp.arange(client.weight.shape[0])
        first = lambda n: client._replace(weight=client.weight * (place < n))
        return jax.vmap(lambda n: measure(first(n)))(jnp.array(numbers))

    return measured


def _nested(estimator: Estimator, numbers, layout):
    """An estimator's weights `[C, n]` on the first samples of every number."""
    measure = merging.over_each(_by_number(estimator.measure, numbers), layout=layout)

    @jax.jit
    def program(base, federated, local, samples, trained_on, key):
        measured = measure(base, federated, local, samples, trained_on, key)
        if estimator.decide is None:
            return measured.weight
        counts = jnp.minimum(samples.count[:, None], jnp.array(numbers))
        decide = jax.vmap(estimator.decide, in_axes=1, out_axes=1)
        return decide(measured, counts.astype(jnp.float32)).weight

    return program


# --- A cell --------------------------------------------------------------------------


def run_cell(cell, settings, programs, problem, *, store, display) -> dict:
    """Train both models of a cell, weigh in every way, and score: its record."""
    federation = problem.federations[cell]
    key = jax.random.key(cell.seed)
    at = Context(settings, programs, problem, federation, cell, key)
    federated, local = train_parents(at, store, display)
    pair = federated.models, local.models
    curves = {space: _curve(at, pair, space) for space in programs.merge}
    exact = curves["delta"]
    return {
        **cell._asdict(),
        "points": _points(settings).tolist(),
        "curve": exact.mean(1).tolist(),
        "federated": float(exact[-1].mean()),
        "local": float(exact[0].mean()),
        "best_constant": float(exact.mean(1).max()),
        "best_per_client": float(exact.max(0).mean()),
        "estimates": _estimates(at, pair, curves),
    }


def _points(settings) -> np.ndarray:
    return np.linspace(0, 1, settings.grid_points)


def _curve(at: Context, pair, space: str) -> np.ndarray:
    """Every client's test accuracy along the segment, `[T, C]`."""
    clients = at.settings.clients
    args = _clients(at, pair, "heldout")
    merge = lambda w: at.programs.merge[space](*args, jnp.full(clients, w))
    accuracy = lambda w: np.asarray(score(at, merge(w)).accuracy, np.float64)
    return np.stack([accuracy(w) for w in _points(at.settings).astype(np.float32)])


def _clients(at: Context, pair, samples: str, number: int = 1) -> tuple:
    """The arguments of every program, with the first samples of a client."""
    drawn = {"heldout": heldout, "train": training}[samples](at)
    first = jax.tree.map(lambda x: x[:, :number], drawn.examples)
    samples = merging.Samples(first, jnp.minimum(drawn.count, number))
    counts = at.federation.train.count
    return (at.problem.base, *pair, samples, counts, at.fold(4))


def _estimates(at: Context, pair, curves) -> list[dict]:
    """Every estimate of the cell, with the accuracy that it leads to."""
    estimates = [_record(("uniform",), {}, _half(at), curves["delta"], at)]
    for samples in ("train", "heldout"):
        for key, weigh in at.programs.weigh.items():
            if samples == "train" and key[0] in _COSTLY:
                continue
            args = _clients(at, pair, samples, max(weigh.numbers))
            weights = jax.device_get(weigh.program(*args))
            for i, number in enumerate(weigh.numbers):
                own = jax.tree.map(lambda w, i=i: w[:, i], weights)
                fields = {"samples": samples, "number": number}
                estimates += _scored(at, pair, curves, key, fields, own)
    return estimates


def _half(at) -> np.ndarray:
    return np.full(at.settings.clients, 0.5)


def _scored(at, pair, curves, key, fields, weights) -> list[dict]:
    """Records of one estimator's weights: `[C]`, `[C, D]`, or by module."""
    if isinstance(weights, dict):
        args = _clients(at, pair, "heldout")
        merged = at.programs.merge["delta"](*args, weights)
        mean = np.mean(list(weights.values()), 0)
        accuracy = np.asarray(score(at, merged).accuracy, np.float64)
        return [_entry(key, fields, mean, accuracy.mean(), at)]
    if weights.ndim == 1:
        return [_record(key, fields, weights, curves["delta"], at)]
    spaces = ("delta", "factor") if key[2] == "factor" else ("delta",)
    return [
        _record(
            key,
            fields | {"damping": name, "value": value, "merge": space},
            weights[:, d],
            curves[space],
            at,
        )
        for d, (name, value) in enumerate(_ALL_DAMPINGS)
        for space in spaces
    ]


def _record(key, fields, weights, curve, at) -> dict:
    """An estimate whose accuracy is read off the segment's."""
    points = _points(at.settings)
    each = [np.interp(w, points, c) for w, c in zip(weights, curve.T, strict=True)]
    return _entry(key, fields, weights, np.mean(each), at)


def _entry(key, fields, weights, mean, at) -> dict:
    names = ("estimator", "fisher", "space", "factorisation")
    return {
        **dict(zip(names, key, strict=False)),
        **fields,
        "mean": float(mean),
        "weight": float(np.mean(weights)),
        "passes": passes(key, at),
    }


def passes(key: tuple, at: Context) -> float:
    """What a weight costs a sample, in forward-backward passes of one model.

    Counted, not timed: a backward pass is two forward passes, a Jacobian-vector product
    is one beside its forward pass.
    """
    shapes = jax.eval_shape(at.problem.adapter, at.key)
    modules, points = len(shapes), at.settings.grid_points
    classes = at.federation.proportions.shape[1]
    forwards = {
        "uniform": 0,
        "hermite": 4,
        "hermite_pooled": 4,
        "hermite_bayes": 4,
        "grid": points,
        "grid_pooled": points,
        "soup": 3,
        "learned": 3 * LEARNED["steps"],
        "gauss_newton": 3 * (2 + modules),
    }
    if key[0] == "potara":
        rows = classes if key[1] == "exact" else 1
        return 2 * (1 + 2 * rows) / 3
    return forwards[key[0]] / 3
