"""Twenty clients on the handwritten digits of scikit-learn.

    potara run digits                     (or: make digits)

A small Vision Transformer is pre-trained on upstream images turned by 90, 180 and 270
degrees, which no client ever sees; clients hold upright images of a few classes each.
With three seeds at Dirichlet 0.1 and 0.5 it takes eight minutes on two cores.

The setting is this project's own: learning rate, rank and rounds were chosen on the
held-out samples of one seed that is not among the defaults (100), for the federated and
the local models alike. Expect the merges to beat both their parents.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax

from potara_jax.adapters import lora
from potara_jax.clients.task import classification
from potara_jax.data import digits
from potara_jax.data.federation import Federation
from potara_jax.experiment.problem import Problem, federations
from potara_jax.experiment.settings import Settings, check_base, check_least
from potara_jax.experiment.vision import Model, problem_of
from potara_jax.models.pretraining import pretrain
from potara_jax.models.vit import ViT, ViTConfig
from potara_jax.runs.bases import cached_base


@dataclasses.dataclass(frozen=True)
class Digits(Settings):
    """Federated and local LoRA on a ViT for handwritten digits, merged by Potara."""

    out: Path = Path("runs/digits")
    """Run folder. A finished run is shown again, an unfinished one is continued."""
    examples: int | None = None
    """Training images of a client, in the median, which may then be those of others
    too: for more clients than there are images. Default: images are dealt out, once."""
    base_seed: int = 0
    """Seed of the upstream images, and of the base's pre-training."""
    base_steps: int = 400
    """Steps of the base's pre-training."""
    depth: int = 4
    """Blocks of the ViT."""

    def check(self) -> None:
        """As `Settings.check`, and those of the digits."""
        super().check()
        check_least(self, 1, "examples", "depth")
        check_base(self)


def problem(settings: Digits, note) -> Problem:
    """The digits ViT and its federations, one a heterogeneity and seed."""
    images = digits.load(settings.base_seed)
    found = federations(settings, partial(_federation, images, settings))
    sizes = {"patch": 2, "width": 64, "heads": 4, "classes": digits.CLASSES}
    config = ViTConfig(depth=settings.depth, **sizes)
    read = partial(_base, config, images, settings, note)
    names = list(map(str, range(digits.CLASSES)))
    return problem_of(settings, Model(config, read, (8, 8, 1), names), found)


def _federation(images, settings, cell, size) -> Federation:
    heterogeneity, seed = cell
    return digits.federation(
        digits.deal(images, seed),
        heterogeneity,
        clients=settings.clients,
        heldout=settings.samples,
        seed=seed,
        size=size,
        examples=settings.examples,
    )


def _base(config: ViTConfig, images, settings, note) -> lora.Params:
    model, upstream = ViT(config), digits.upstream(images)
    recipe = {"model": dataclasses.asdict(config), "steps": settings.base_steps}
    recipe |= {"seed": settings.base_seed, "batch_size": 64, "learning_rate": 1e-3}

    def train():
        start, steps = jax.random.split(jax.random.key(settings.base_seed))
        params = model.init(start, upstream.inputs[:1])["params"]
        task = classification(lora.bind(model, scale=1.0))
        return pretrain(
            lambda params, batch: task.objective(params)({}, batch),
            params,
            upstream,
            steps,
            steps=settings.base_steps,
            batch_size=recipe["batch_size"],
            learning_rate=recipe["learning_rate"],
        )[0]

    return cached_base(settings.cache, recipe, upstream, train, note)
