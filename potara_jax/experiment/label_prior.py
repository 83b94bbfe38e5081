"""The correction of a cell's federated models by their clients' class shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.clients.compiling import jit
from potara_jax.clients.task import Task
from potara_jax.data.federation import Federation, take
from potara_jax.evaluation.metrics import has_classes
from potara_jax.experiment.context import Context, heldout_samples
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Problem
from potara_jax.merging import label_prior
from potara_jax.merging.label_prior import Losses

Pair = tuple[Any, Any]  # federated and local adapters [C, ...]


class LabelPrior(NamedTuple):
    """A cell's correction by the clients' class shares.

    Attributes:
      bias: every client's, `[C, K]`.
      losses: on held-out samples.
      used: whether the merges of the table have it.
    """

    bias: jax.Array
    losses: Losses
    used: bool

    def correct(self, pair: Pair) -> Pair:
        """The pair with its federated models corrected."""
        return label_prior.corrected(*pair, self.bias)


def label_prior_of(at: Context, pair: Pair) -> LabelPrior | None:
    """The correction of a cell's federated models; None where nothing has classes."""
    task, federation = at.problem.task, at.federation
    if not has_classes(task, federation.pool):
        return None
    bias = at.programs.once("label shift", lambda: _bias(at.problem, at.present))
    shift = bias(federation)
    measure = at.programs.once("label prior", lambda: _losses(at, task))
    losses = measure(at.problem.base, pair[0], heldout_samples(at), shift)
    setting = at.experiment.merging.label_prior
    used = setting == "on" or (setting == "auto" and bool(losses.helps))
    return LabelPrior(shift, losses, used)


def as_set(at: Context, pair: Pair) -> Pair:
    """A pair as the experiment's merges have it: corrected, or as it is."""
    if at.experiment.merging.label_prior == "off":
        return pair
    prior = label_prior_of(at, pair)
    return prior.correct(pair) if prior and prior.used else pair


def check(experiment: Experiment, problem: Problem) -> None:
    """Raise `ValueError` if the correction is on and the task has no classes."""
    pool = next(iter(problem.federations.values())).pool
    if experiment.merging.label_prior == "on" and not has_classes(problem.task, pool):
        raise ValueError(
            "merging.label_prior is on: it corrects class shares, and this task's "
            "examples have no classes; use off"
        )


def _bias(problem: Problem, present: int) -> Callable[[Federation], jax.Array]:
    """Every client's bias, from the training examples; newcomers are in no share."""
    task, base = problem.task, problem.base
    logits = task.logits
    assert logits is not None, "a task with classes has logits"

    @jit
    def bias(federation: Federation) -> jax.Array:
        one = take(federation.pool, jnp.arange(1))
        adapter = jax.eval_shape(problem.adapter, jax.random.key(0))
        classes = jax.eval_shape(logits, base, adapter, one).shape[-1]
        index, number, _ = federation.train
        labels = federation.pool.labels[index]
        counts = label_prior.class_counts(labels, number, classes=classes)
        return label_prior.shift(counts, counts[:present].sum(0))

    return bias


def _losses(at: Context, task: Task) -> Callable[..., Losses]:
    assert task.logits is not None, "a task with classes has logits"
    return label_prior.losses(task.logits, layout=at.programs.layout)
