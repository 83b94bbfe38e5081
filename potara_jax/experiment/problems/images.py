"""Models and federations of labelled images.

Dimension letters: `B` batch, `N` images, `K` classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters import lora
from potara_jax.adapters.lora import Params
from potara_jax.clients.task import of_classes
from potara_jax.data.federation import Batch
from potara_jax.data.images import Images
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Federations, Resources
from potara_jax.experiment.problems import bases, federations
from potara_jax.experiment.problems.vision import VisionModel
from potara_jax.experiment.settings import Pretraining, require_that
from potara_jax.models import publishing, vit, weights
from potara_jax.models.vit import ViT, ViTConfig

LARGEST_SIDE = 4096  # pixels
_FEWEST = 5  # images of a class
_HEAD_WIDTH = 32
_PREPROCESSOR = "preprocessor_config.json"


def check_upstream(share: float, checkpoint: str | None) -> None:
    """Raise `ValueError` for a share of the base's examples that cannot be."""
    require_that(0 <= share < 1, "source.upstream", share, "in [0, 1)")
    expected = "above 0: a base needs examples, or source.checkpoint"
    require_that(bool(share or checkpoint), "source.upstream", share, expected)


def check_width(width: int) -> None:
    """Raise `ValueError` for a width that heads cannot share."""
    good = width % _HEAD_WIDTH == 0
    require_that(good, "source.width", width, f"a multiple of {_HEAD_WIDTH}")


# --- Who has what --------------------------------------------------------------------


def split_classes(images: Images, share: float, *, seed: int) -> tuple[Images, Images]:
    """Split images by class into the base's and the clients', labelled from 0 each.

    Args:
      images: the images.
      share: of the classes, for the base; 0 where it needs none.
      seed: draws the base's classes.

    Returns:
      The base's images, and the clients'.

    Raises:
      ValueError: one of them has fewer than two classes.
    """
    order = np.random.default_rng([seed, 0]).permutation(len(images.names))
    kept = np.sort(order[round(share * len(order)) :])
    upstream = np.setdiff1d(np.arange(len(images.names)), kept)
    if len(kept) < 2 or (share and len(upstream) < 2):
        raise ValueError(
            f"{len(images.names)} classes are too few: {len(upstream)} for the base "
            f"and {len(kept)} for the clients; set another source.upstream"
        )
    return _of_classes(images, upstream), _of_classes(images, kept)


def _of_classes(images: Images, classes: np.ndarray) -> Images:
    place = np.full(len(images.names), -1)
    place[classes] = np.arange(len(classes))
    labels = place[images.labels]
    names = tuple(images.names[c] for c in classes)
    kept = labels >= 0
    return Images(images.images[kept], labels[kept].astype(np.int32), names)


def dealt(
    experiment: Experiment,
    images: Images,
    *,
    test: int,
    testing: np.ndarray | None = None,
) -> Federations:
    """Federations of clients to whom images are dealt by class.

    Args:
      experiment: its cells and samples.
      images: the clients' images.
      test: test images per client, at most.
      testing: `[N]`, true for images that are for tests alone.

    Returns:
      The federations by cell.

    Raises:
      ValueError: a class has too few images, or there are too many clients.
    """
    counts = np.bincount(images.labels, minlength=len(images.names))
    for name, count in zip(images.names, counts, strict=True):
        if count < _FEWEST:
            raise ValueError(
                f"class '{name}' has {count} images: it must have {_FEWEST} or more"
            )
    return federations.dealt(
        experiment, batch(images), images.labels, test=test, testing=testing
    )


def batch(images: Images) -> Batch:
    """The images on the device."""
    return Batch(jnp.asarray(images.images), jnp.asarray(images.labels))


# --- A model that is pre-trained -----------------------------------------------------


def pretrained(
    upstream: Images,
    images: Images,
    settings: Pretraining,
    resources: Resources,
    *,
    width: int,
    depth: int,
) -> VisionModel:
    """A ViT that learns upstream classes, with a new head for the clients' classes.

    Args:
      upstream: images that the base is pre-trained on.
      images: the clients' images.
      settings: of the pre-training.
      resources: the cache, and the log.
      width: of the ViT, a multiple of 32.
      depth: its blocks.

    Returns:
      The model; it is trained when it is read.
    """
    config = _sized(upstream, width=width, depth=depth)
    base = partial(_pretrain, config, upstream, settings, resources)
    classes, shape = len(images.names), images.images.shape[1:]
    return VisionModel(
        dataclasses.replace(config, classes=classes),
        lambda: _with_head(base(), classes),
        shape,
        images.names,
        prepare=_scaled,
        files={_PREPROCESSOR: _described_scaling(shape)},
    )


def _sized(images: Images, *, width: int, depth: int) -> ViTConfig:
    """A ViT that suits the images: eight patches a side, where that divides."""
    side = images.images.shape[1]
    patch = next(p for p in (max(1, side // 8), 4, 2, 1) if side % p == 0)
    return ViTConfig(
        patch=patch,
        width=width,
        depth=depth,
        heads=width // _HEAD_WIDTH,
        classes=len(images.names),
    )


def _pretrain(
    config: ViTConfig, upstream: Images, settings: Pretraining, resources: Resources
) -> Params:
    model, examples = ViT(config), batch(upstream)
    apply = lora.bind(model, scale=1.0)
    task = of_classes(lambda base, adapter, x: apply(base, adapter, _scaled(x)))
    return bases.pretrained(
        config,
        lambda key: model.init(key, _scaled(examples.inputs[:1]))["params"],
        lambda params, batch: task.loss(params, {}, batch),
        examples,
        settings,
        resources,
    )


def _with_head(base: Params, classes: int) -> Params:
    """The base with a head of zeros."""
    width = base["norm"]["scale"].shape[0]
    head = {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}
    return dict(base) | {"head": head}


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
      ValueError: it is no ViT, cannot be had, or does not fit the images.
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
    """Enlarges images to the model's side, and normalises them as the folder says."""
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
