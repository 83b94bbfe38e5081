"""Your own images: a ViT pre-trained on some classes, federated on the others.

    potara run images --data a.npz b.npz
    potara run images --data FOLDER               one sub-folder per class

Files hold `images` (uint8 `[N, H, W, C]`), `labels` and optionally `names`. A ViT that
suits the images is pre-trained on a share of the classes, or `--checkpoint` names a
Hugging Face folder; clients hold the other classes, and train a head for them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from potara_jax.data.images import read, without_duplicates
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Problem, Resources
from potara_jax.experiment.problems import bases, images, vision
from potara_jax.experiment.settings import (
    Lora,
    Merging,
    Pretraining,
    require_at_least,
    require_at_most,
    require_that,
)


@dataclasses.dataclass(frozen=True)
class Source:
    """The user's images, and the ViT that learns them."""

    data: tuple[Path, ...] = ()
    """Files of images and labels (.npz), or folders with one sub-folder per class."""
    side: int | None = None
    """Resize images to this many pixels a side. Default: as they are."""
    checkpoint: str | None = None
    """Folder, or name on Hugging Face's hub, of a ViT. Default: one is pre-trained."""
    upstream: float = 0.6
    """Share of the classes that the base is pre-trained on, and no client has."""
    test_examples: int = 100
    """Test images of a client, at most, in its proportions."""
    width: int = 96
    """Width of the ViT that is pre-trained."""
    depth: int = 6
    """Its blocks."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for a value that cannot be."""
        expected = "files (.npz) or folders of images"
        require_that(bool(self.data), "source.data", "empty", expected)
        require_at_least(self, "source", 1, "side", "test_examples", "width", "depth")
        require_at_most(self, "source", images.LARGEST_SIDE, "side")
        images.check_upstream(self.upstream, self.checkpoint)
        images.check_width(self.width)


def make_problem(experiment: Experiment, resources: Resources) -> Problem:
    """A ViT and its federations."""
    source, settings = experiment.source, bases.settings_of(experiment)
    everything = without_duplicates(read(source.data, side=source.side), resources.log)
    share = 0.0 if source.checkpoint else source.upstream
    upstream, mine = images.split_classes(everything, share, seed=settings.seed)
    cells = images.dealt(experiment, mine, test=source.test_examples)
    if source.checkpoint:
        model = images.loaded(source.checkpoint, mine)
    else:
        model = images.pretrained(
            upstream,
            mine,
            settings,
            resources,
            width=source.width,
            depth=source.depth,
        )
    return vision.problem(experiment, model, cells)


EXPERIMENT = Experiment(
    name="images",
    make_problem=make_problem,
    summary="your own images, with classes dealt to clients",
    source=Source(),
    lora=Lora(whole=("head",)),
    merging=Merging(
        curvature="empirical",
        methods=(
            *("uniform", "potara delta, rank r", "potara core, per module"),
            *("potara core, held-out", "fisher", "hermite", "grid", "ties", "dare"),
        ),
    ),
    pretraining=Pretraining(steps=1500),
    presets={
        "study": {"cells.heterogeneity": ("0.05", "0.1", "0.3", "0.5", "1")},
        "simulate": {
            "cells.heterogeneity": ("0.1",),
            "cells.clients": 100,
            "participation.cohort": "10",
        },
    },
    files=lambda e: bases.user_files(e.source.data, e.source.checkpoint),
)
