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
from potara_jax.experiments.images import OwnImages, problem_of_images

from potara_jax.data import catalogue
from potara_jax.data.images import Images
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.settings import Precision


@dataclasses.dataclass(frozen=True)
class Cifar100(OwnImages):
    """Federated and local LoRA on ViT-B/16 for CIFAR-100, merged by Potara."""

    data: tuple[Path, ...] = (catalogue.DEFAULT,)
    """Folder of tensorflow-datasets; what it lacks is downloaded into it."""
    checkpoint: str = "google/vit-base-patch16-224-in21k"
    """Folder, or name on Hugging Face's hub, of a pre-trained ViT."""
    out: Path = Path("runs/cifar100")
    """Run folder. A finished run is shown again, an unfinished one is continued."""
    precision: Precision = "bfloat16"
    """Of the frozen base; activations are in bfloat16 with the last two."""
    rank: int = 16
    """Rank of the LoRA factors."""
    alpha: float = 32.0
    """LoRA's alpha: a delta is scaled by alpha / rank."""
    federated_rounds: int = 400
    """Rounds of FedIT."""
    longer_rounds: int = 600
    """Rounds to which a federated model goes on, as a baseline that is not merged."""
    local_rounds: int = 300
    """Rounds that each client trains alone: the local phase, and fine-tuning."""
    learning_rate: float = 1e-3
    """AdamW's learning rate; its state is fresh in every round."""
    test_examples: int = 500
    """Test images of a client, at most, in its proportions."""

    def check(self) -> None:
        """As `OwnImages.check`, and that there is one folder."""
        super().check()
        if len(self.data) != 1:
            named = " ".join(map(str, self.data)) or "nothing"
            raise ValueError(f"--data names {named}: it must name one folder")


def problem(settings: Cifar100, note) -> Problem:
    """The ViT and its federations, one a heterogeneity and seed."""
    parts = [catalogue.images("cifar100", s, settings.data[0]) for s in _SPLITS]
    testing = np.repeat([False, True], [len(part.labels) for part in parts])
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    found = Images(images, labels, parts[0].names)
    return problem_of_images(found, settings, note, testing=testing)


_SPLITS = "train", "test"
