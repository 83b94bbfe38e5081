"""Twenty clients on the handwritten digits of scikit-learn.

    potara run digits                     (or: make digits)

A small Vision Transformer is pre-trained on upstream images turned by 90, 180 and 270
degrees, which no client ever sees; clients hold upright images of a few classes each.
With heterogeneity `tasks`, groups of clients transform their images and have all
classes alike. Three seeds at Dirichlet 0.1 and 0.5 take eight minutes on two cores.

The setting is this project's own: learning rate, rank and rounds were chosen on the
held-out samples of one seed that is not among the defaults (100), for the federated and
the local models alike. Expect the merges to beat both their parents.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from potara_jax.adapters import lora
from potara_jax.adapters.lora import Params
from potara_jax.clients.task import of_classes
from potara_jax.data import digits
from potara_jax.data.dealing import SHARDS
from potara_jax.data.federation import Federation
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Problem, Resources
from potara_jax.experiment.problems import bases, federations, vision
from potara_jax.experiment.problems.vision import VisionModel
from potara_jax.experiment.settings import Pretraining, require_at_least, require_that
from potara_jax.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class Source:
    """The digits, and the ViT that learns them."""

    examples: int | None = None
    """Median of the clients' training images, which several may then hold: for more
    clients than images. Default: images are dealt, each to one client."""
    depth: int = 4
    """Blocks of the ViT."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for a value that cannot be."""
        require_at_least(self, "source", 1, "examples", "depth")
        shards = any(x.startswith(SHARDS) for x in experiment.cells.heterogeneity)
        expected = f"unset: {SHARDS} are dealt"
        good = self.examples is None or not shards
        require_that(good, "source.examples", self.examples, expected)


def make_problem(experiment: Experiment, resources: Resources) -> Problem:
    """The digits ViT and its federations."""
    source, settings = experiment.source, bases.settings_of(experiment)
    images = digits.load(settings.seed)

    def federate(heterogeneity: str, seed: int, *, size: int | None) -> Federation:
        return digits.federation(
            images,
            heterogeneity,
            seed,
            clients=experiment.cells.clients,
            heldout=experiment.merging.samples,
            examples=source.examples,
            size=size,
        )

    cells = federations.for_cells(experiment.cells, federate)
    config = ViTConfig(
        patch=2, width=64, depth=source.depth, heads=4, classes=digits.CLASSES
    )
    model = VisionModel(
        config,
        lambda: _pretrain(config, images, settings, resources),
        shape=(8, 8, 1),
        names=[str(digit) for digit in range(digits.CLASSES)],
    )
    return vision.problem(experiment, model, cells)


def _pretrain(
    config: ViTConfig,
    images: digits.Digits,
    settings: Pretraining,
    resources: Resources,
) -> Params:
    model, upstream = ViT(config), digits.upstream_images(images)
    task = of_classes(lora.bind(model, scale=1.0))
    return bases.pretrained(
        config,
        lambda key: model.init(key, upstream.inputs[:1])["params"],
        lambda params, batch: task.loss(params, {}, batch),
        upstream,
        settings,
        resources,
        report=False,
    )


EXPERIMENT = Experiment(
    name="digits",
    make_problem=make_problem,
    summary="a small ViT on handwritten digits",
    source=Source(),
    pretraining=Pretraining(steps=400),
    presets={
        "compare": {"federated.rounds": 30, "local.rounds": 15},
        "study": {"cells.heterogeneity": ("0.05", "0.1", "0.3", "0.5", "1", "tasks")},
        "simulate": {
            "cells.heterogeneity": ("0.1",),
            "cells.clients": 10_000,
            "participation.cohort": "200",
            "source.examples": 40,
            "federated.rounds": 50,
        },
    },
    tuned=json.loads(Path(__file__).with_name("tuned.json").read_text("utf-8")),
)
