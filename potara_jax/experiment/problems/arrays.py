"""A problem on arrays, with any model."""

from __future__ import annotations

import jax.numpy as jnp

from potara_jax.adapters import lora
from potara_jax.adapters.lora import Params
from potara_jax.clients.model_task import ModelTask
from potara_jax.data.federation import take
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
      ValueError: a target that matches no module, or a rank that is too large.
    """
    settings = experiment.lora
    pool = next(iter(federations.values())).pool
    example = take(pool, jnp.zeros(1, jnp.int32))
    sites = task.sites(example, settings.targets)
    lora.check_rank(sites, settings.rank)
    return Problem(
        task=task.at(settings.scale, sites),
        base=base,
        adapter=adapter_maker(
            sites, rank=settings.rank, base=base, whole=settings.whole
        ),
        federations=federations,
        form=Form(None, {}, {}, sites=sites, scale=settings.scale),
    )
