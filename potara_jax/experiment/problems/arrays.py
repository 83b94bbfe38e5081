"""A problem on arrays, with any model."""

from __future__ import annotations

import jax.numpy as jnp

from potara_jax.adapters import lora
from potara_jax.adapters.lora import Params
from potara_jax.clients.model_task import ModelTask
from potara_jax.data.federation import take
from potara_jax.experiment.checks import require_that
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Federations, Problem, adapter_maker
from potara_jax.models.publishing import Form


def problem(
    experiment: Experiment, task: ModelTask, base: Params, federations: Federations
) -> Problem:
    """A problem of any model.

    Args:
      experiment: its `lora` settings say what is adapted.
      task: what the clients learn on the model.
      base: the model's parameters, or all of its variables.
      federations: by `(heterogeneity, seed)`, all of one shape.

    Returns:
      The problem; models are exported under their modules' names.

    Raises:
      ValueError: a target that matches no module, a rank that is too large, labels
        that are no classes of the model, or settings that do not change a model of the
        user's.
    """
    _check_compute(experiment)
    settings = experiment.lora
    expected = "left out: the layers of your model are not known; name them in targets"
    last = settings.last_layers
    require_that(last is None, "lora.last_layers", last, expected)
    pool = next(iter(federations.values())).pool
    example = take(pool, jnp.zeros(1, jnp.int32))
    sites = task.sites(example, settings.targets)
    lora.check_rank(sites, settings.rank)
    for federation in federations.values():
        names = [f"client {c}" for c in range(len(federation.train.count))]
        task.check(base, federation.pool, federation.examples(), names)
    return Problem(
        task=task.at(settings.scale, sites),
        base=base,
        adapter=adapter_maker(
            sites, rank=settings.rank, base=base, whole=settings.whole
        ),
        federations=federations,
        form=Form(None, {}, {}, sites=sites, scale=settings.scale),
    )


def _check_compute(experiment: Experiment) -> None:
    """Raise `ValueError` for settings of how the model is computed.

    The dtype of a user's model and what it recomputes are its own.
    """
    settings = experiment.compute
    expected = "float32: give a base and a model of another dtype instead"
    good = settings.precision == "float32"
    require_that(good, "compute.precision", settings.precision, expected)
    expected = "off: use flax.linen.remat in the model instead"
    require_that(not settings.remat, "compute.remat", "on", expected)
    expected = "auto or recompute: the layers of your model are not known"
    good = settings.frozen in ("auto", "recompute")
    require_that(good, "compute.frozen", settings.frozen, expected)
