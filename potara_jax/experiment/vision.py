"""What experiments on images share: a problem of a Vision Transformer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.adapters import lora, precision
from potara_jax.clients.task import classification
from potara_jax.data.federation import Federation
from potara_jax.experiment.problem import Held, Problem, initial_adapter
from potara_jax.experiment.settings import Settings
from potara_jax.models import vit
from potara_jax.models.publishing import Form
from potara_jax.models.vit import ViT, ViTConfig

Array = jax.Array


class Model(NamedTuple):
    """A ViT; `read()` gives its parameters.

    `shape`: of an image that it reads, `(H, W, C)`. `names`: of its classes.
    `prepare`: from the pool's images to the model's. `told`: what belongs to a
    checkpoint of it, texts by name. `checkpoint`: the folder or name that it is of, or
    None where it is trained here.
    """

    config: ViTConfig
    read: Callable[[], lora.Params]
    shape: tuple[int, ...]
    names: Sequence[str]
    prepare: Callable[[Array], Array] = lambda image: image
    told: Mapping[str, str] = {}
    checkpoint: str | None = None


def problem_of(
    settings: Settings, found: Model, federations: dict[tuple[str, int], Federation]
) -> Problem:
    """A problem of a ViT, whose parameters are read once all else is checked."""
    reduced = settings.precision != "float32"
    dtype = "bfloat16" if reduced else "float32"
    model = ViT(dataclasses.replace(found.config, dtype=dtype, remat=settings.remat))
    image = jax.ShapeDtypeStruct((1, *found.shape), jnp.float32)
    sites = lora.find_sites(model, image, targets=settings.targets)
    lora.check_rank(sites, settings.rank)
    every = lora.find_sites(model, image, targets=".*")
    trained = ("head",) if settings.train_head else ()
    scale = settings.alpha / settings.rank
    base, prepare = found.read(), found.prepare
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
        form=_form(found, sites, scale),
        held=Held("class", tuple(found.names)),
    )


def _form(found: Model, sites, scale: float) -> Form:
    side, _, colours = found.shape
    config = vit.described(found.config, side, colours, found.names)
    how = {"sites": sites, "scale": scale, "checkpoint": found.checkpoint}
    return Form(vit.TABLE, config, found.told, **how)
