"""What a cell compares: ways to weigh, ways to merge, and the rows made of both.

Names are those of `potara_jax.merging`'s registry, and what is special about a row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from potara_jax import merging
from potara_jax.clients.task import Task
from potara_jax.experiment.settings import Settings
from potara_jax.merging import Client, Estimator
from potara_jax.merging.likelihoods import LIKELIHOODS
from potara_jax.merging.weights import DAMPINGS

CURVATURE, OTHER, HELDOUT = "curvature", "other", "heldout"


class Weighing(NamedTuple):
    """An estimator and the samples it looks at.

    `samples`: those that the settings measure `curvature` on, the `other` ones, or the
    `heldout` ones.
    """

    estimator: Estimator
    samples: str = HELDOUT


class Derived(NamedTuple):
    """Weights `of(curvature, examples)` from the curvature of another weighing."""

    source: str
    of: Callable[[merging.Curvature, jax.Array], Any]


class Row(NamedTuple):
    """A row of the table: which weights, merged how."""

    name: str
    weighing: str
    merge: str


# Gradient descent as in the study: more steps gained nothing there.
LEARNED = {"steps": 25, "learning_rate": 0.05}
# The paper's, gauge-free, and this project's, which lost to none in the study.
SPECIAL, OWN = "potara core", "hermite_bayes"
KEPT = (SPECIAL, OWN, "federated", "local")  # methods whose models can be exported


# What cannot be had of examples with several labels.
_OF_ONE_LABEL = ("gauss_newton",)
_ALWAYS = (SPECIAL, OWN, "potara factor")


def rows(settings: Settings, task: Task) -> tuple[Row, ...]:
    """The rows of the table that merge, in order: those that the settings ask for."""
    wanted = {*settings.merges, *_ALWAYS}
    return tuple(
        row
        for row in _all_rows(settings)
        if (not settings.merges or row.name in wanted)
        and (row.merge != "regmean" or task.inputs)
        and not (task.sequences and row.weighing in _OF_ONE_LABEL)
    )


def check(settings: Settings) -> None:
    """Raise `ValueError` where the settings ask for a row that there is not."""
    known = [row.name for row in _all_rows(settings)]
    unknown = [name for name in settings.merges if name not in known]
    if unknown:
        raise ValueError(f"--merges names {unknown[0]}; there are {'; '.join(known)}")


def _all_rows(settings: Settings) -> tuple[Row, ...]:
    other = "train" if settings.curvature_on == "heldout" else "held-out"
    by_loss = ("hermite", "hermite_pooled", "gauss_newton", "grid", "grid_pooled")
    data_free = ("task_arithmetic", "ties", "ties (knots)", "dare", "slerp")
    subspace = ("tsv", "iso", "wudi")
    return (
        Row("uniform", "half", "delta"),
        Row("potara factor", "potara factor", "factor"),
        Row("potara delta", "potara factor", "delta"),
        Row("potara delta, rank r", "potara factor", "rank r"),
        Row(SPECIAL, SPECIAL, "delta"),
        Row("potara core, per module", "potara core, per module", "delta"),
        Row(f"potara core, {other}", "potara core, other", "delta"),
        Row("fisher", "fisher", "core"),
        *(Row(name, name, "delta") for name in (OWN, *by_loss, "learned", "soup")),
        Row("lorahub", "lorahub", "factor"),
        *(Row(name, "half", name) for name in (*data_free, *subspace, "regmean")),
    )


def derived(settings: Settings, used: Collection[str]) -> dict[str, Derived]:
    """Weights that need no measurement of their own, of those that rows use."""
    damping = DAMPINGS[settings.damping](settings.damping_value)
    per_module = lambda c, n: merging.potara_weight(c, damping, n, per="module")
    known = {
        "potara core, per module": Derived(SPECIAL, per_module),
        "fisher": Derived(SPECIAL, lambda c, n: merging.fisher_weight(c)),
    }
    return {name: known[name] for name in known if name in used}


def weighings(
    settings: Settings, task: Task, used: Collection[str]
) -> dict[str, Weighing]:
    """Ways to weigh that look at samples, of those that rows use, by that name."""
    likelihood = LIKELIHOODS[settings.curvature](one_example(task.logits))
    damping = DAMPINGS[settings.damping](settings.damping_value)
    core = merging.potara(likelihood, damping, space="core")
    factor = merging.potara(likelihood, damping, space="factor")
    points = settings.grid_points
    known = {
        "half": Weighing(merging.constant(0.5)),
        "potara factor": Weighing(factor, CURVATURE),
        SPECIAL: Weighing(core, CURVATURE),
        "potara core, other": Weighing(core, OTHER),
        "hermite": Weighing(merging.hermite(task.loss)),
        "hermite_pooled": Weighing(merging.hermite_pooled(task.loss)),
        "hermite_bayes": Weighing(merging.hermite_bayes(task.loss)),
        "gauss_newton": Weighing(merging.gauss_newton(task.logits)),
        "grid": Weighing(merging.grid(task.loss, points=points)),
        "grid_pooled": Weighing(merging.grid_pooled(task.loss, points=points)),
        "learned": Weighing(merging.learned(task.loss, **LEARNED)),
        "soup": Weighing(merging.soup(task.loss)),
        "lorahub": Weighing(merging.lorahub(task.loss)),
    }
    return {name: known[name] for name in known if name in used}


class Merging(NamedTuple):
    """A method, or a function from a client to it, in a space, at a rank."""

    method: Any
    space: str | None = None
    rank: int | None = None


def mergings(settings: Settings, task: Task) -> dict[str, Merging]:
    """Every way to merge, by the name that rows use."""
    return {
        "factor": Merging(merging.linear(), "factor"),
        "delta": Merging(merging.linear(), "delta"),
        "core": Merging(merging.linear(), "core"),
        "rank r": Merging(merging.linear(), "delta", settings.rank),
        "task_arithmetic": Merging(merging.task_arithmetic()),
        "ties": Merging(merging.ties()),
        "ties (knots)": Merging(merging.ties(), "knots"),
        "dare": Merging(merging.dare()),
        "slerp": Merging(merging.slerp()),
        "regmean": Merging(_regmean(task)),
        "tsv": Merging(merging.tsv()),
        "iso": Merging(merging.iso()),
        "wudi": Merging(merging.wudi()),
    }


def one_example(logits: Callable) -> Callable:
    """The logits of one example, from those of a batch."""

    def one(base, adapter, example):
        return logits(base, adapter, jax.tree.map(lambda x: x[None], example))[0]

    return one


def _regmean(task: Task) -> Callable[[Client], merging.Merge]:
    """RegMean with the inputs that either model has on the client's samples."""

    def method(client: Client) -> merging.Merge:
        gram = lambda x: jnp.einsum("td,te->de", x, x, precision="highest")

        def grams(adapter):
            rows = task.inputs(client.base, adapter, client.examples)
            per_sample = len(client.weight)
            kept = lambda x: x.reshape(per_sample, -1, x.shape[-1])
            real = (client.weight > 0)[:, None, None]
            masked = lambda x: jnp.where(real, kept(x), 0).reshape(x.shape)
            return {path: gram(masked(x)) for path, x in rows.items()}

        return merging.regmean((grams(client.federated), grams(client.local)))

    return method
