"""Labelled images, and which client has which.

Dimension letters: `N` images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from potara_jax.data import catalogue
from potara_jax.data.dealing import TASKS
from potara_jax.data.federation import Batch, Federation
from potara_jax.data.images import Images, join, read, without_duplicates
from potara_jax.data.transforms import TRANSFORMS
from potara_jax.experiment.checks import (
    require_at_least,
    require_at_most,
    require_that,
)
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Federations
from potara_jax.experiment.problems import bases, federations, scale

_LARGEST_SIDE = 4096  # pixels
_FEWEST = 5  # images of a class
_BOTH = 4  # classes, of the base and the clients


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """The user's images, and the ViT that learns them."""

    data: tuple[Path, ...] = ()
    """Files of images and labels (.npz), or folders with one sub-folder per class,
    maybe within train and test."""
    side: int | None = None
    """Resize images to this many pixels per side. Default: as they are."""
    checkpoint: str | None = None
    """Folder, or name on Hugging Face's hub, of a ViT or a DINOv2. Default: a ViT is
    pre-trained."""
    image_size: int | None = None
    """Side of the images that the checkpoint reads, in pixels. Default: as its
    preprocessor crops them, or those that it was trained on."""
    layers: int | None = None
    """Use the first layers of the checkpoint only. Default: all."""
    upstream: float = 0.6
    """Share of the classes that the base is pre-trained on, and no client has."""
    test_examples: int = 100
    """Maximum of test images per client, in its proportions."""
    width: int | None = None
    """Width of the ViT that is pre-trained. Default: 96, or 64 on few processors."""
    depth: int | None = None
    """Its blocks. Default: 6, or 3 on few processors."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for an invalid value."""
        expected = "files (.npz) or folders of images"
        require_that(bool(self.data), "source.data", "empty", expected)
        require_at_least(self, "source", 1, "test_examples")
        check_side(self)
        check_reading(self)
        bases.check_sizes(self)
        bases.check_upstream(self)


@dataclasses.dataclass(frozen=True)
class PublicImages:
    """A public data set of images, and the pre-trained model that learns it."""

    checkpoint: str
    """Folder, or name on Hugging Face's hub, of a ViT or a DINOv2."""
    image_size: int | None = None
    """Side of the images that the checkpoint reads, in pixels. Default: as its
    preprocessor crops them, or those that it was trained on."""
    layers: int | None = None
    """Use the first layers of the checkpoint only. Default: all."""
    data: tuple[Path, ...] = ()
    """Your copy of the data set: files (.npz) or folders, as `potara run images` reads
    them. Default: tensorflow-datasets."""
    data_dir: Path = catalogue.DEFAULT
    """Folder of tensorflow-datasets; a missing data set is downloaded into it."""
    classes: int | None = None
    """Use the first classes only. Default: all."""
    class_examples: int | None = None
    """Maximum of images of a class, drawn at random, for training and for tests each.
    Default: all."""
    test_examples: int = 500
    """Maximum of test images per client, in its proportions."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for an invalid value."""
        require_at_least(self, "source", 1, "test_examples")
        require_at_least(self, "source", 2, "classes")
        require_at_least(self, "source", _FEWEST, "class_examples")
        check_reading(self)


def public(name: str, source: PublicImages, log: Callable[[str], None]) -> Images:
    """The images of a public data set, or those in the user's copy.

    Only tests may use those of its official test, or of the copy's if that has one.

    Args:
      name: of the data set, in tensorflow-datasets.
      source: says where they are, and how many of them are used.
      log: receives lines on what was converted or left out.

    Raises:
      ValueError: a file cannot be used, or the data set cannot be prepared.
    """
    if source.data:
        everything = without_duplicates(read(source.data, log=log), log)
    else:
        splits = "train", "test"
        parts = [catalogue.images(name, s, source.data_dir) for s in splits]
        testing = np.repeat([False, True], [len(part.labels) for part in parts])
        everything = join(parts, splits)._replace(testing=testing)
    if source.classes is not None:
        number = len(everything.names)
        expected = f"at most {number}, the classes of {name}"
        good = source.classes <= number
        require_that(good, "source.classes", source.classes, expected)
        everything = _of_classes(everything, np.arange(source.classes))
    if source.class_examples is None:
        return everything
    return everything.select(_drawn(everything, source.class_examples))


def _drawn(images: Images, number: int) -> np.ndarray:
    """Which images are among some of their class and part, in their order."""
    testing = np.zeros(len(images.labels)) if images.testing is None else images.testing
    group = 2 * images.labels + testing.astype(int)
    order = np.random.default_rng(0).permutation(len(group))
    chosen = [order[group[order] == each][:number] for each in np.unique(group)]
    return np.sort(np.concatenate(chosen))


def check_side(source: Any) -> None:
    """Raise `ValueError` for a side that images cannot be resized to."""
    require_at_least(source, "source", 1, "side")
    require_at_most(source, "source", _LARGEST_SIDE, "side")


def check_reading(source: Any) -> None:
    """Raise `ValueError` for an `image_size` or `layers` that no checkpoint takes."""
    require_at_least(source, "source", 1, "image_size", "layers")
    require_at_most(source, "source", _LARGEST_SIDE, "image_size")
    for name in ("image_size", "layers"):
        value, expected = getattr(source, name), "left out without source.checkpoint"
        good = value is None or bool(source.checkpoint)
        require_that(good, f"source.{name}", value, expected)


def resolve(experiment: Experiment) -> Experiment:
    """The experiment with a base and its pre-training that suit the device."""
    return experiment.set(scale.suited(experiment, scale.IMAGES))


# --- Who has what --------------------------------------------------------------------


def split_classes(images: Images, share: float, *, seed: int) -> tuple[Images, Images]:
    """Split images by class into the base's and the clients', labelled from 0 each.

    Args:
      images: the images.
      share: of the classes, for the base; 0 if it needs none.
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
            f"and {len(kept)} for the clients, where both need 2; "
            + _more_classes(len(images.names))
        )
    return _of_classes(images, upstream), _of_classes(images, kept)


def _more_classes(classes: int) -> str:
    """What helps where the base's or the clients' classes are too few."""
    if classes >= _BOTH:
        return (
            f"set source.upstream so that both have, such as {_BOTH / 2 / classes:.2g}"
        )
    if classes > 1:
        return (
            "name a model for all classes with source.checkpoint, or give every client "
            "a folder or file of its images and use `potara run clients`"
        )
    return "add images of other classes"


def _of_classes(images: Images, classes: np.ndarray) -> Images:
    place = np.full(len(images.names), -1)
    place[classes] = np.arange(len(classes))
    labels = place[images.labels]
    names = tuple(images.names[c] for c in classes)
    of_them = Images(images.images, labels.astype(np.int32), names, images.testing)
    return of_them.select(labels >= 0)


def dealt(
    experiment: Experiment,
    images: Images,
    *,
    test: int,
    testing: np.ndarray | None = None,
) -> Federations:
    """Deal images to clients by class, or by what clients do to them, as federations.

    With heterogeneity `tasks` clients share the classes, and each group of them
    transforms its images in its own way.

    Args:
      experiment: its cells and samples.
      images: the clients' images.
      test: the maximum of test images per client.
      testing: `[N]`, true for images that only tests may use.

    Returns:
      The federations by cell.

    Raises:
      ValueError: a class has too few images, there are too many clients, or images that
        are to be transposed are not square.
    """
    trained = slice(None) if testing is None else ~testing
    counts = np.bincount(images.labels[trained], minlength=len(images.names))
    for name, count in zip(images.names, counts, strict=True):
        if count < _FEWEST:
            raise ValueError(
                f"class '{name}' has {count} images: it must have {_FEWEST} or more"
            )
    kinds = _kinds(experiment, images)
    cells = federations.dealt(
        experiment,
        batch(images),
        images.labels,
        test=test,
        testing=testing,
        kinds=kinds,
    )
    return _as_seen(cells, images) if kinds > 1 else cells


def _kinds(experiment: Experiment, images: Images) -> int:
    """In how many ways the clients see the images."""
    if TASKS not in experiment.cells.heterogeneity:
        return 1
    height, width = images.images.shape[1:3]
    if height != width:
        raise ValueError(
            f"cells.heterogeneity {TASKS} transposes images, and these have {height} x "
            f"{width} pixels: take square ones, such as `potara run images` makes with "
            "--side, or another heterogeneity"
        )
    return len(TRANSFORMS)


def _as_seen(cells: Federations, images: Images) -> Federations:
    """The federations, whose pool is every image as the clients that use it see it."""
    parts = "train", "heldout", "test"
    index = lambda federation, part: np.asarray(getattr(federation, part).index)
    used = np.unique(
        np.concatenate([index(f, p).ravel() for f in cells.values() for p in parts])
    )
    pool = _transformed(images, used)

    def placed(federation: Federation, part: str) -> Any:
        places = np.searchsorted(used, index(federation, part))
        return getattr(federation, part)._replace(index=jnp.asarray(places, jnp.int32))

    return {
        cell: f._replace(pool=pool, **{part: placed(f, part) for part in parts})
        for cell, f in cells.items()
    }


def _transformed(images: Images, used: np.ndarray) -> Batch:
    """The images `n + k N` for images `n` of `N` under the transformations `k`."""
    kind, place = np.divmod(used, len(images.labels))
    seen = [
        transform(images.images[place[kind == k]])
        for k, transform in enumerate(TRANSFORMS.values())
    ]
    return batch(
        images._replace(images=np.concatenate(seen), labels=images.labels[place])
    )


def batch(images: Images) -> Batch:
    """The images on the device."""
    return Batch(jnp.asarray(images.images), jnp.asarray(images.labels))
