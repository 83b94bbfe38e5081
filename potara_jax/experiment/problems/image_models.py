"""The ViT of a problem of labelled images: pre-trained here, or a checkpoint's.

Dimension letters: `B` batch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters.lora import Params
from potara_jax.data.images import Images
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Resources
from potara_jax.experiment.problems import bases, vision
from potara_jax.experiment.problems.images import batch
from potara_jax.experiment.problems.vision import VisionModel
from potara_jax.models import publishing, vit, weights
from potara_jax.models.vit import ViT, ViTConfig

_PREPROCESSOR = "preprocessor_config.json"


class ImageModel(Protocol):
    """Settings of a model of images: a checkpoint, or the sizes of a new ViT."""

    @property
    def checkpoint(self) -> str | None: ...
    @property
    def width(self) -> int: ...
    @property
    def depth(self) -> int: ...


def chosen(
    experiment: Experiment, upstream: Images, mine: Images, resources: Resources
) -> VisionModel:
    """The source's checkpoint, or a ViT that learns the upstream images.

    Args:
      experiment: its source is an `ImageModel`.
      upstream: images that the base is pre-trained on; none if it is a checkpoint.
      mine: the clients' images, for whose classes the model has a new head.
      resources: the cache, and the log.

    Returns:
      The model; it is loaded or trained when it is read.

    Raises:
      ValueError: the checkpoint is not a ViT, cannot be loaded, or does not fit the
        images.
    """
    source: ImageModel = experiment.source
    if source.checkpoint:
        return loaded(source.checkpoint, mine)
    return _pretrained(experiment, upstream, mine, resources)


def _with_head(base: Params, classes: int) -> Params:
    """The base with a head of zeros."""
    width = base["norm"]["scale"].shape[0]
    head = {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}
    return dict(base) | {"head": head}


# --- A model that is pre-trained -----------------------------------------------------


def _pretrained(
    experiment: Experiment, upstream: Images, mine: Images, resources: Resources
) -> VisionModel:
    """A ViT that learns the upstream images when it is read."""
    config = _sized(upstream, experiment.source)
    examples, settings = batch(upstream), bases.settings_of(experiment)
    pretrain = partial(vision.pretrain, config, examples, settings, resources)
    classes, shape = len(mine.names), mine.images.shape[1:]
    return VisionModel(
        dataclasses.replace(config, classes=classes),
        lambda: _with_head(pretrain(prepare=_scaled), classes),
        shape,
        mine.names,
        prepare=_scaled,
        files={_PREPROCESSOR: _described_scaling(shape)},
    )


def _sized(images: Images, source: ImageModel) -> ViTConfig:
    """A ViT that suits the images: eight patches per side, if that divides it."""
    side = images.images.shape[1]
    patch = next(p for p in (max(1, side // 8), 4, 2, 1) if side % p == 0)
    return ViTConfig(
        patch=patch,
        width=source.width,
        depth=source.depth,
        heads=source.width // bases.HEAD_WIDTH,
        classes=len(images.names),
    )


def _scaled(images: jax.Array) -> jax.Array:
    """Pixels from -1 to 1."""
    return images.astype(jnp.float32) / 127.5 - 1


def _described_scaling(shape: Sequence[int]) -> str:
    """`_scaled` as Hugging Face describes it."""
    half = [0.5] * shape[-1]
    config = {
        "image_processor_type": "ViTImageProcessor",
        "do_rescale": True,
        "size": {"height": shape[0], "width": shape[1]},
        "do_resize": True,
        "do_normalize": True,
        "image_mean": half,
        "image_std": half,
    }
    return json.dumps(config, indent=1) + "\n"


# --- A checkpoint --------------------------------------------------------------------


def loaded(checkpoint: str, images: Images) -> VisionModel:
    """A Hugging Face ViT with a new head for the images' classes.

    Args:
      checkpoint: its folder, or its name on the hub.
      images: the clients' images, which are enlarged to the model's size on the device.

    Returns:
      The model; its parameters are loaded when it is read.

    Raises:
      ValueError: it is not a ViT, cannot be loaded, or does not fit the images.
    """
    folder, classes = weights.folder_of(checkpoint), len(images.names)
    description = weights.read_config(folder)
    with weights.errors_naming(folder / weights.CONFIG):
        config = vit.config_of(description, classes=classes)
    prepare = _preparation(folder, description, colours=images.images.shape[-1])
    image = jax.eval_shape(prepare, jnp.zeros((1, *images.images.shape[1:])))
    shapes = jax.eval_shape(ViT(config).init, jax.random.key(0), image)["params"]
    body = {name: x for name, x in shapes.items() if name != "head"}
    table = vit.TABLE._replace(ignored=(*vit.TABLE.ignored, "classifier.*"))
    return VisionModel(
        config,
        lambda: _with_head(weights.load(folder, table, body, dtype="float32"), classes),
        image.shape[1:],
        images.names,
        prepare=prepare,
        files=publishing.read_files(folder),
        checkpoint=checkpoint,
    )


def _preparation(
    folder: Path, description: dict[str, Any], *, colours: int
) -> Callable[[jax.Array], jax.Array]:
    """Enlarges images to the model's side, and normalises them as its folder says."""
    side, expected = (
        description.get("image_size", 224),
        description.get("num_channels", 3),
    )
    if not isinstance(side, int):
        raise ValueError(f"{folder} wants images of {side}: they must be square")
    if colours != expected:
        raise ValueError(f"{folder} wants images of {expected} colours, not {colours}")
    mean, deviation = _normalisation(folder / _PREPROCESSOR, colours)

    def prepare(images: jax.Array) -> jax.Array:
        images = images.astype(jnp.float32)
        shape = len(images), side, side, images.shape[-1]
        if images.shape != shape:
            images = jax.image.resize(images, shape, "bilinear")
        return (images / 255 - mean) / deviation

    return prepare


def _normalisation(path: Path, colours: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every colour."""
    description = weights.read_object(path) if path.is_file() else {}
    half = [0.5] * colours
    with weights.errors_naming(path):
        mean = np.array(description.get("image_mean", half), np.float32)
        deviation = np.array(description.get("image_std", half), np.float32)
    fits = mean.shape == deviation.shape == (colours,) and np.isfinite(mean).all()
    if not fits or not (deviation > 0).all():
        raise ValueError(f"{path}: image_mean and image_std must be {colours} numbers")
    return mean, deviation
