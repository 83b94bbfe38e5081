"""A folder with one file or folder per client, and the settings that suit it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from potara_jax.experiment.checks import require_at_least, require_that
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problems import bases, images, texts
from potara_jax.experiment.settings import AUTO

_TEXT = (".jsonl", ".jsonl.gz", ".json")


@dataclasses.dataclass(frozen=True)
class ClientFolder:
    """The user's clients, and the model that they adapt."""

    data: tuple[Path, ...] = ()
    """The folder that holds a sub-folder or file per client."""
    checkpoint: str | None = None
    """Folder, or name on Hugging Face's hub, of a ViT, a DINOv2, a Llama or a Qwen.
    Default: a model is pre-trained."""
    image_size: int | None = None
    """Side of the images that the checkpoint reads, in pixels. Default: as its
    preprocessor crops them, or those that it was trained on."""
    layers: int | None = None
    """Use the first layers of a checkpoint for images only. Default: all."""
    upstream: float = 0.3
    """Share of the clients that the base is pre-trained on; they do not federate."""
    side: int | None = None
    """Resize images to this many pixels per side. Default: as they are."""
    context: int | None = None
    """Maximum of tokens per example; a longer one loses the start of its prompt.
    Default: what 19 of 20 examples and every answer need, at most 128."""
    test_examples: int = 200
    """Maximum of test examples per client."""
    vocabulary: int = 2048
    """Tokens of the tokenizer that is trained."""
    width: int = 128
    """Width of the model that is pre-trained."""
    depth: int = 4
    """Its layers."""
    normalise: bool = False
    """Choose options by their log-likelihood per token, not in total."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for an invalid value."""
        texts.check(self)
        require_at_least(self, "source", 8, "test_examples")
        images.check_side(self)
        images.check_reading(self)
        bases.check_upstream(self)

    def num_upstream(self, clients: int) -> int:
        """How many clients the base is pre-trained on: at least one, if any."""
        if self.checkpoint or not 0 < self.upstream < 1:
            return 0
        return min(max(1, round(self.upstream * clients)), clients - 1)


class ClientPaths(NamedTuple):
    """The clients whose examples the base learns, and those who federate."""

    upstream: list[Path]
    federated: list[Path]


def find(data: Sequence[Path]) -> list[Path]:
    """The clients of a folder, in the order of their names.

    Raises `ValueError` unless there is one folder with two or more clients, all with
    texts or all with images.
    """
    if len(data) != 1 or not data[0].is_dir():
        names = " ".join(map(str, data)) or "empty"
        expected = "one folder, with a file or folder per client"
        raise ValueError(f"source.data is {names}: it must be {expected}")
    paths = sorted(path for path in data[0].iterdir() if _is_client(path))
    if len(paths) < 2:
        raise ValueError(
            f"{data[0]} holds {len(paths)} clients: there must be 2 or more"
        )
    kinds = {is_text(path): path.name for path in paths}
    if len(kinds) > 1:
        raise ValueError(
            f"{data[0]} holds texts ({kinds[True]}) and images ({kinds[False]}): all "
            "clients must be of one kind"
        )
    return paths


def _is_client(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return path.is_dir() or path.suffix == ".npz" or is_text(path)


def is_text(path: Path) -> bool:
    """Whether a client's examples are texts; otherwise they are images."""
    return path.name.endswith(_TEXT)


def divide(experiment: Experiment) -> ClientPaths:
    """Draw the clients for the base; the first of the others, by name, federate."""
    source, seed = experiment.source, bases.settings_of(experiment).seed
    paths = find(source.data)
    upstream = source.num_upstream(len(paths))
    order = np.random.default_rng([seed, 0]).permutation(len(paths))
    federated = np.sort(order[upstream:])[: experiment.cells.clients]
    return ClientPaths(
        [paths[i] for i in order[:upstream]], [paths[i] for i in federated]
    )


# --- Settings that suit the data -----------------------------------------------------

_UNSET = ([AUTO], AUTO, 0)
_OF_IMAGES = {
    "lora.targets": ("query", "value"),
    "lora.whole": ("head",),
    "merging.curvature": "empirical",
    "pretraining.batch_size": 64,
    "pretraining.learning_rate": 1e-3,
}
_OF_TEXTS = {
    "lora.targets": ("q_proj", "v_proj"),
    "lora.whole": (),
    "merging.curvature": "sampled",
    "pretraining.batch_size": 32,
    "pretraining.learning_rate": 2e-3,
}


def resolve(experiment: Experiment) -> Experiment:
    """The experiment with the number of clients, and defaults for their kind of data.

    Raises `ValueError` if there are fewer clients than it needs.
    """
    paths = find(experiment.source.data)
    largest = len(paths) - experiment.source.num_upstream(len(paths))
    number = experiment.cells.clients
    require_that(number <= largest, "cells.clients", number, f"{largest} or less")
    defaults = _OF_TEXTS if is_text(paths[0]) else _OF_IMAGES
    values = experiment.settings()
    changes = {n: x for n, x in defaults.items() if values[n] in _UNSET}
    return experiment.set(changes | {"cells.clients": number or largest})
