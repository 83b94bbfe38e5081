"""The model of a problem of images: a new ViT, or a checkpoint's ViT or DINOv2.

Dimension letters: `B` batch.
"""

from __future__ import annotations

import dataclasses
import json
import math
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
from potara_jax.experiment.problem import Resources, silent
from potara_jax.experiment.problems import bases, vision
from potara_jax.experiment.problems.images import batch
from potara_jax.experiment.problems.vision import VisionModel
from potara_jax.models import publishing, vit, weights
from potara_jax.models.image_families import family_of
from potara_jax.models.vit import ViT, ViTConfig

_PREPROCESSOR = "preprocessor_config.json"


class ImageModel(Protocol):
    """Settings of a model of images: a checkpoint, or the sizes of a new ViT."""

    @property
    def checkpoint(self) -> str | None: ...
    @property
    def image_size(self) -> int | None: ...
    @property
    def layers(self) -> int | None: ...
    @property
    def width(self) -> int | None: ...
    @property
    def depth(self) -> int | None: ...


def chosen(
    experiment: Experiment, upstream: Images, mine: Images, resources: Resources
) -> VisionModel:
    """The source's checkpoint, or a ViT that learns the upstream images.

    Args:
      experiment: its source is an `ImageModel`.
      upstream: images that the base is pre-trained on; none if it is a checkpoint.
      mine: the clients' images. The model's head is of their classes; it keeps what
        the base knows of them.
      resources: the cache, and the log.

    Returns:
      The model; it is loaded or trained when it is read.

    Raises:
      ValueError: the checkpoint is neither a ViT nor a DINOv2, cannot be loaded, or
        does not fit the images.
    """
    source: ImageModel = experiment.source
    if source.checkpoint:
        return loaded(
            source.checkpoint,
            mine,
            image_size=source.image_size,
            layers=source.layers,
            log=resources.log,
        )
    return _pretrained(experiment, upstream, mine, resources)


def _with_head(
    base: Params, config: ViTConfig, known: Sequence[str], names: Sequence[str]
) -> Params:
    """The base with a head for classes: what it knows of them, and zeros for others.

    Args:
      base: its head, if it knows any classes, is of these.
      config: the sizes of the model.
      known: the names of what the base knows.
      names: of the classes of the new head.
    """
    places = {name: place for place, name in enumerate(known)}
    chosen = np.array([places.get(name, -1) for name in names])
    kept, new = np.flatnonzero(chosen >= 0), len(names)
    kernel = jnp.zeros((vit.head_inputs(config), new))
    bias = jnp.zeros(new)
    if kept.size:
        head, columns = base["head"], chosen[kept]
        kernel = kernel.at[:, kept].set(head["kernel"][:, columns])
        bias = bias.at[kept].set(head["bias"][columns])
    return dict(base) | {"head": {"kernel": kernel, "bias": bias}}


# --- A model that is pre-trained -----------------------------------------------------


def _pretrained(
    experiment: Experiment, upstream: Images, mine: Images, resources: Resources
) -> VisionModel:
    """A ViT that learns the upstream images when it is read."""
    config = _sized(upstream, experiment.source)
    examples, settings = batch(upstream), bases.settings_of(experiment)
    pretrain = partial(vision.pretrain, config, examples, settings, resources)
    shape = mine.images.shape[1:]
    return VisionModel(
        dataclasses.replace(config, classes=len(mine.names)),
        lambda: _with_head(
            pretrain(prepare=_scaled), config, upstream.names, mine.names
        ),
        shape,
        mine.names,
        prepare=_scaled,
        files={_PREPROCESSOR: _described_scaling(shape)},
    )


def _sized(images: Images, source: ImageModel) -> ViTConfig:
    """A ViT that suits the images: eight patches per side, if that divides it."""
    side = images.images.shape[1]
    width, depth = bases.sizes_of(source)
    patch = next(p for p in (max(1, side // 8), 4, 2, 1) if side % p == 0)
    return ViTConfig(
        patch=patch,
        width=width,
        depth=depth,
        heads=width // bases.HEAD_WIDTH,
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


def loaded(
    checkpoint: str,
    images: Images,
    *,
    image_size: int | None = None,
    layers: int | None = None,
    log: Callable[[str], None] = silent,
) -> VisionModel:
    """A Hugging Face ViT or DINOv2 with a head for the images' classes.

    The checkpoint's head is kept for the classes that it names as the images do.

    Args:
      checkpoint: its folder, or its name on the hub.
      images: the clients' images, which are resized on the device.
      image_size: side of the images that the model reads. Default: as its preprocessor
        crops them, or those that it was trained on.
      layers: use the first layers only; default: all.
      log: receives a line if the checkpoint knows some of the classes.

    Returns:
      The model; its parameters are loaded when it is read.

    Raises:
      ValueError: it is neither, cannot be loaded, or does not fit the images.
    """
    folder, names = weights.folder_of(checkpoint), images.names
    description = weights.read_config(folder)
    with weights.errors_naming(folder / weights.CONFIG):
        family = family_of(description)
        config = family.config_of(description, classes=len(names), layers=layers)
    shape = _shape(folder, description, config, image_size, images.images.shape[-1])
    _check_positions(folder, config)
    known = _known_classes(folder, description)
    if shared := len({*known} & {*names}):
        log(f"{checkpoint} knows {shared} of the {len(names)} classes: its head stays")
    read = partial(_read, folder, description, config, shape, known)
    return VisionModel(
        config,
        lambda: _with_head(read(), config, known, names),
        shape,
        names,
        prepare=_preparation(folder, shape),
        files=publishing.read_files(folder),
        checkpoint=checkpoint,
        family=family,
    )


def _shape(
    folder: Path,
    description: dict[str, Any],
    config: ViTConfig,
    image_size: int | None,
    colours: int,
) -> tuple[int, int, int]:
    """`(H, W, C)` of the images that a checkpoint reads."""
    expected = description.get("num_channels", 3)
    if colours != expected:
        raise ValueError(f"{folder} wants images of {expected} colours, not {colours}")
    trained_on = vit.described_side(config, 0)
    side = image_size or _crop(folder / _PREPROCESSOR) or trained_on
    if side < config.patch:
        raise ValueError(
            f"{folder}: images of {side} pixels are smaller than a patch of "
            f"{config.patch}; set another source.image_size"
        )
    return side, side, colours


def _crop(path: Path) -> int | None:
    """The side of the images that a preprocessor crops, if it does."""
    description = weights.read_object(path) if path.is_file() else {}
    size = description.get("crop_size")
    sides = {*size.values()} if isinstance(size, dict) else {size}
    (side,) = sides if len(sides) == 1 else (0,)
    if side is not None and (not isinstance(side, int) or side < 1):
        raise ValueError(
            f"{path}: crop_size is {size}: it must be one number of pixels"
        )
    return side


def _check_positions(folder: Path, config: ViTConfig) -> None:
    """Raise `ValueError` if the weights' positions are not for the images described."""
    files, end = weights.open_all(folder), "embeddings.position_embeddings"
    name = next((name for name in files if name.endswith(end)), None)
    if name is None or config.grid is None:
        return
    _, number, *_ = files[name].tensors.get_slice(name).get_shape()
    side = math.isqrt(number - 1)
    if number - 1 != math.prod(config.grid):
        described = vit.described_side(config, 0)
        raise ValueError(
            f"{folder / weights.CONFIG} has image_size {described}, but the weights "
            f"are for images of {side * config.patch} pixels per side: "
            "correct image_size, and choose another size with source.image_size"
        )


def _known_classes(folder: Path, description: dict[str, Any]) -> tuple[str, ...]:
    """The names of the classes of a checkpoint's head, if it has one."""
    names = description.get("id2label") or {}
    if "classifier.weight" not in weights.open_all(folder):
        return ()
    with weights.errors_naming(folder / weights.CONFIG):
        return tuple(str(names[str(number)]) for number in range(len(names)))


def _read(
    folder: Path,
    description: dict[str, Any],
    config: ViTConfig,
    shape: tuple[int, int, int],
    known: Sequence[str],
) -> Params:
    """A checkpoint's parameters, with its head if the classes of that are known."""
    family, image = family_of(description), jnp.zeros((1, *shape))
    model = ViT(dataclasses.replace(config, classes=max(1, len(known))))
    shapes = dict(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    if not known:
        del shapes["head"]
    table = family.reading(config, description, head=bool(known))
    return weights.load(folder, table, shapes, dtype="float32")


def _preparation(
    folder: Path, shape: tuple[int, int, int]
) -> Callable[[jax.Array], jax.Array]:
    """Resizes images to `(H, W, C)`, and normalises them as a folder says."""
    mean, deviation = _normalisation(folder / _PREPROCESSOR, shape[-1])

    def prepare(images: jax.Array) -> jax.Array:
        images = images.astype(jnp.float32)
        if images.shape[1:] != shape:
            images = jax.image.resize(images, (len(images), *shape), "bilinear")
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
