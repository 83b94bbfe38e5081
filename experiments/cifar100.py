"""CIFAR-100: ViT-B/16 from ImageNet-21k, twenty clients.

    potara run cifar100                  (or: make cifar100)

Dirichlet 0.1 and 0.5 over the hundred classes, 400 federated and 300 local rounds,
against 600 federated ones. The paper (arXiv 2602.18658) reports 62.39 % for its first
client of twenty.

It does not publish rank, learning rate, local steps and batch size: those are this
project's. Images are 32 x 32 and are enlarged to the model's 224 on the device. The
weights (346 MB) come from Hugging Face's hub; training wants a device of 24 GB. It
takes 4e17 floating-point operations (4 a parameter and patch): an hour at 100 TFLOP/s.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from potara_jax.data import catalogue
from potara_jax.data.images import Images
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Problem, Resources
from potara_jax.experiment.problems import bases, images, vision
from potara_jax.experiment.settings import (
    Compute,
    Federated,
    Local,
    Lora,
    Merging,
    Training,
    require_at_least,
)

_SPLITS = "train", "test"


@dataclasses.dataclass(frozen=True)
class Source:
    """CIFAR-100, and the ViT that learns it."""

    data_dir: Path = catalogue.DEFAULT
    """Folder of tensorflow-datasets; a missing data set is downloaded into it."""
    checkpoint: str = "google/vit-base-patch16-224-in21k"
    """Folder, or name on Hugging Face's hub, of a pre-trained ViT."""
    test_examples: int = 500
    """Test images of a client, at most, in its proportions."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for a value that cannot be."""
        require_at_least(self, "source", 1, "test_examples")


def make_problem(experiment: Experiment, resources: Resources) -> Problem:
    """The ViT and its federations; the official test images are for tests alone."""
    source = experiment.source
    parts = [catalogue.images("cifar100", s, source.data_dir) for s in _SPLITS]
    everything = Images(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        parts[0].names,
    )
    testing = np.repeat([False, True], [len(part.labels) for part in parts])
    cells = images.dealt(
        experiment, everything, test=source.test_examples, testing=testing
    )
    model = images.loaded(source.checkpoint, everything)
    return vision.problem(experiment, model, cells)


EXPERIMENT = Experiment(
    name="cifar100",
    make_problem=make_problem,
    summary="ViT-B/16 on CIFAR-100, as in the paper",
    source=Source(),
    lora=Lora(rank=16, alpha=32.0, whole=("head",)),
    training=Training(learning_rate=1e-3),
    federated=Federated(rounds=400, longer_rounds=600),
    local=Local(rounds=300),
    merging=Merging(
        curvature="empirical",
        methods=(
            *("uniform", "potara delta, rank r", "potara core, per module"),
            *("potara core, held-out", "fisher", "hermite", "grid", "ties", "dare"),
        ),
    ),
    compute=Compute(precision="bfloat16"),
    presets={
        "study": {"cells.heterogeneity": ("0.05", "0.1", "0.3", "0.5", "1")},
        "simulate": {
            "cells.heterogeneity": ("0.1",),
            "cells.clients": 500,
            "participation.cohort": "20",
        },
    },
    files=lambda e: bases.user_files([], e.source.checkpoint),
)
