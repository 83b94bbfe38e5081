"""What experiments on images share: a problem of a Vision Transformer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.problem import Problem, initial_adapter
from experiments.settings import Settings
from potara_jax.adapters import lora, precision
from potara_jax.clients.task import classification
from potara_jax.data.federation import Federation
from potara_jax.models.vit import ViT, ViTConfig

Array = jax.Array


def problem_of(
    settings: Settings,
    config: ViTConfig,
    read: Callable[[], lora.Params],
    federations: dict[tuple[str, int], Federation],
    *,
    shape: tuple[int, ...],
    prepare: Callable[[Array], Array] = lambda image: image,
) -> Problem:
    """A problem of a ViT, whose parameters `read()` gives once all else is checked.

    shape: of an image `(H, W, C)`. prepare: from the pool's images to the model's.
    """
    reduced = settings.precision != "float32"
    dtype = "bfloat16" if reduced else "float32"
    model = ViT(dataclasses.replace(config, dtype=dtype, remat=settings.remat))
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    sites = lora.find_sites(model, image, targets=settings.targets)
    lora.check_rank(sites, settings.rank)
    every = lora.find_sites(model, image, targets=".*")
    trained = ("head",) if settings.train_head else ()
    scale = settings.alpha / settings.rank
    base = read()
    on = lambda apply: lambda base, adapter, x: apply(base, adapter, prepare(x))
    return Problem(
        task=classification(
            on(lora.bind(model, scale=scale)),
            read=on(lora.bind_inputs(model, scale=scale)),
            features=on(lora.bind_input_of(model, "head", scale=scale)),
            add=lora.bind_add(sites, scale=scale),
        ),
        base=precision.KINDS[settings.precision](base, every),
        adapter=initial_adapter(sites, rank=settings.rank, base=base, trained=trained),
        federations=federations,
    )
