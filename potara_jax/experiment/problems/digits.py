"""The digits of scikit-learn: which client has which, and the ViT that learns them."""

from __future__ import annotations

import dataclasses
from functools import partial

from potara_jax.data import digits
from potara_jax.data.dealing import SHARDS
from potara_jax.data.digits import Digits
from potara_jax.data.federation import Federation
from potara_jax.experiment.checks import require_at_least, require_that
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Federations, Resources
from potara_jax.experiment.problems import bases, federations, vision
from potara_jax.experiment.problems.vision import VisionModel
from potara_jax.models.vit import ViTConfig


@dataclasses.dataclass(frozen=True)
class HandwrittenDigits:
    """The digits, and the ViT that learns them."""

    examples: int | None = None
    """Median number of a client's training images, which clients may then share: for
    more clients than images. Default: each image is dealt to one client."""
    depth: int = 4
    """Blocks of the ViT."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for an invalid value."""
        require_at_least(self, "source", 1, "examples", "depth")
        shards = any(x.startswith(SHARDS) for x in experiment.cells.heterogeneity)
        expected = f"unset: {SHARDS} are dealt"
        good = self.examples is None or not shards
        require_that(good, "source.examples", self.examples, expected)


def dealt(experiment: Experiment, images: Digits) -> Federations:
    """Federations of clients with upright images.

    Args:
      experiment: with its settings.
      images: of the base and of the clients.

    Raises:
      ValueError: there are too few images for this many clients.
    """

    def federate(heterogeneity: str, seed: int, *, size: int | None) -> Federation:
        return digits.federation(
            images,
            heterogeneity,
            seed,
            clients=experiment.cells.clients,
            heldout=experiment.merging.samples,
            examples=experiment.source.examples,
            apart=experiment.cells.apart_from,
            size=size,
        )

    return federations.for_cells(experiment.cells, federate)


def model(experiment: Experiment, images: Digits, resources: Resources) -> VisionModel:
    """A small ViT, pre-trained on the rotated upstream images when it is read."""
    config = ViTConfig(
        patch=2,
        width=64,
        depth=experiment.source.depth,
        heads=4,
        classes=digits.CLASSES,
    )
    settings, examples = bases.settings_of(experiment), digits.upstream_images(images)
    pretrain = partial(vision.pretrain, config, examples, settings, resources)
    return VisionModel(
        config,
        partial(pretrain, report=False),
        shape=(8, 8, 1),
        names=[str(digit) for digit in range(digits.CLASSES)],
    )
