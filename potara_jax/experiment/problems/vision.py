"""A problem of a Vision Transformer.

Dimension letters: `N` images, `B` batch, `H` `W` image sides, `C` colours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.adapters import lora, precision
from potara_jax.adapters.lora import Params, Site
from potara_jax.clients.task import Task, of_classes
from potara_jax.data.federation import Batch
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import (
    ClientContents,
    Federations,
    Problem,
    Resources,
    Split,
    adapter_maker,
)
from potara_jax.experiment.problems import bases
from potara_jax.experiment.settings import Lora, Pretraining
from potara_jax.models import image_families, vit
from potara_jax.models.image_families import Family
from potara_jax.models.publishing import Form
from potara_jax.models.vit import ViT, ViTConfig

_HEAD = "head"


def unchanged(images: jax.Array) -> jax.Array:
    """The images as they are."""
    return images


class VisionModel(NamedTuple):
    """A ViT whose parameters are read when they are needed.

    Attributes:
      config: its sizes.
      read: returns its parameters.
      shape: `(H, W, C)` of the images that it reads.
      names: of its classes.
      prepare: turns a pool's images `[B, ...]` into the model's.
      files: what else a checkpoint of it holds, texts by name.
      checkpoint: the folder or name that it comes from; None for a model trained here.
      family: how it is written.
    """

    config: ViTConfig
    read: Callable[[], Params]
    shape: tuple[int, ...]
    names: Sequence[str]
    prepare: Callable[[jax.Array], jax.Array] = unchanged
    files: Mapping[str, str] = {}
    checkpoint: str | None = None
    family: Family = image_families.VIT


def problem(
    experiment: Experiment,
    model: VisionModel,
    federations: Federations,
    *,
    transformations: Iterable[str] = (),
) -> Problem:
    """A problem of a ViT, whose parameters are read once all else is checked.

    Args:
      experiment: with its settings.
      model: the base.
      federations: of the clients.
      transformations: names of what clients do to their images with heterogeneity
        `tasks`, see `ClientContents`.

    Raises:
      ValueError: the model has no module for a target, or the rank is too large.
    """
    settings, compute = experiment.lora, experiment.compute
    dtype = bases.activation_dtype(compute.precision)
    config = dataclasses.replace(model.config, dtype=dtype, remat=compute.remat)
    module, image = ViT(config), jax.ShapeDtypeStruct((1, *model.shape), jnp.float32)
    sites = bases.in_last_layers(
        lora.find_sites(module, image, targets=settings.targets),
        settings,
        partial(vit.frozen_blocks, config),
    )
    lora.check_rank(sites, settings.rank)
    kernels = lora.find_sites(module, image, targets=".*")
    base = model.read()
    return Problem(
        task=_task(module, model.prepare, sites, settings.scale),
        base=precision.KINDS[compute.precision](base, kernels),
        adapter=adapter_maker(
            sites, rank=settings.rank, base=base, whole=settings.whole
        ),
        federations=federations,
        form=_form(model, sites, settings.scale),
        contents=ClientContents(
            "class", tuple(model.names), transformations=tuple(transformations)
        ),
        split=_split(module, model.prepare, sites, settings),
    )


def _task(
    module: ViT,
    prepare: Callable[[jax.Array], jax.Array],
    sites: Mapping[str, Site],
    scale: float,
    *,
    start: int = 0,
) -> Task:
    """What clients learn on the blocks from `start` on; `prepare` makes their input."""
    prepared = partial(_prepared, prepare=prepare, start=start)
    return of_classes(
        prepared(lora.bind(module, scale=scale)),
        read=prepared(lora.bind_inputs(module, scale=scale)),
        features=prepared(lora.bind_input_of(module, _HEAD, scale=scale)),
        add=lora.bind_add(sites, scale=scale),
    )


def _prepared(
    apply: Callable[..., Any],
    prepare: Callable[[jax.Array], jax.Array],
    **blocks: int,
) -> Callable[..., Any]:
    """A model's apply function, of a pool's inputs; `blocks` are `start` and `stop`."""
    return lambda base, adapter, inputs: apply(base, adapter, prepare(inputs), **blocks)


def _split(
    module: ViT,
    prepare: Callable[[jax.Array], jax.Array],
    sites: Mapping[str, Site],
    settings: Lora,
) -> Split:
    """The model in two, at the first block that is adapted or trained whole."""
    scale, config = settings.scale, module.config
    first = vit.frozen_blocks(config, (*sites, *settings.whole))
    below = _prepared(lora.bind(module, scale=scale), prepare, stop=first)
    return Split(
        first,
        config.depth,
        lambda base, images: below(base, {}, images),
        _task(module, unchanged, sites, scale, start=first),
    )


def _form(model: VisionModel, sites: Mapping[str, Site], scale: float) -> Form:
    side, _, colours = model.shape
    return Form(
        model.family.table,
        model.family.description_of(
            model.config, side=side, colours=colours, names=model.names
        ),
        model.files,
        sites=sites,
        scale=scale,
        checkpoint=model.checkpoint,
    )


def pretrain(
    config: ViTConfig,
    examples: Batch,
    settings: Pretraining,
    resources: Resources,
    *,
    prepare: Callable[[jax.Array], jax.Array] = unchanged,
    report: bool = True,
) -> Params:
    """A ViT that learns classes of images, or is read from the cache.

    Args:
      config: its sizes.
      examples: images `[N, ...]`, and their classes.
      settings: of the pre-training.
      resources: the cache, and the log.
      prepare: turns the images into the model's.
      report: see `bases.pretrained`.

    Returns:
      Its parameters.
    """
    model = ViT(config)
    task = of_classes(_prepared(lora.bind(model, scale=1.0), prepare))
    return bases.pretrained(
        config,
        lambda key: model.init(key, prepare(examples.inputs[:1]))["params"],
        lambda params, batch: task.loss(params, {}, batch),
        examples,
        settings,
        resources,
        report=report,
    )
