"""Your own clients: a folder with one sub-folder or file per client.

    potara run clients --data FOLDER

A client is an .npz file of images, a folder of images with one sub-folder per class, or
a file of text examples (.jsonl, .jsonl.gz, .json). A model is pre-trained on the
examples of some clients, who then take no part, or `--checkpoint` names one.

Settings that are `auto` or 0 take what suits the kind: a ViT whose queries, values and
head are trained, or a Llama whose queries and values are adapted.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Problem, Resources
from potara_jax.experiment.problems import bases, clients, images, texts
from potara_jax.experiment.settings import (
    AUTO,
    NATURAL,
    Cells,
    Lora,
    Merging,
    Pretraining,
    require_at_least,
    require_at_most,
    require_that,
)


@dataclasses.dataclass(frozen=True)
class Source:
    """The user's clients, and the model that they adapt."""

    data: tuple[Path, ...] = ()
    """The folder that holds a sub-folder or file per client."""
    checkpoint: str | None = None
    """Folder, or name on Hugging Face's hub, of a ViT, a Llama or a Qwen. Default: one
    is pre-trained."""
    upstream: float = 0.3
    """Share of the clients that the base is pre-trained on; they do not federate."""
    side: int | None = None
    """Resize images to this many pixels a side. Default: as they are."""
    context: int | None = None
    """The most tokens of an example; a longer one loses the front of its prompt.
    Default: what 19 of 20 examples need, and every answer, 128 at most."""
    test_examples: int = 200
    """Test examples of a client, at most."""
    vocabulary: int = 2048
    """Tokens of the tokenizer that is trained."""
    width: int = 128
    """Width of the model that is pre-trained."""
    depth: int = 4
    """Its layers."""
    normalise: bool = False
    """Choose options by their log-likelihood per token, not whole."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for a value that cannot be."""
        texts.check(self)
        require_at_least(self, "source", 8, "test_examples")
        require_at_least(self, "source", 1, "side")
        require_at_most(self, "source", images.LARGEST_SIDE, "side")
        images.check_upstream(self.upstream, self.checkpoint)


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
    """The experiment with the number of clients, and with what suits their kind."""
    paths = clients.find(experiment.source.data)
    largest = len(paths) - _upstream(experiment, len(paths))
    number = experiment.cells.clients
    require_that(number <= largest, "cells.clients", number, f"{largest} or less")
    defaults = _OF_TEXTS if clients.is_text(paths[0]) else _OF_IMAGES
    values, unset = experiment.settings(), EXPERIMENT.settings()
    changes = {n: x for n, x in defaults.items() if values[n] == unset[n]}
    return experiment.set(changes | {"cells.clients": number or largest})


def _upstream(experiment: Experiment, number: int) -> int:
    source = experiment.source
    if source.checkpoint or not 0 <= source.upstream < 1:  # which is refused
        return 0
    return clients.upstream_number(number, source.upstream)


def make_problem(experiment: Experiment, resources: Resources) -> Problem:
    """A model, and the federation of the clients."""
    source, seed = experiment.source, bases.settings_of(experiment).seed
    everyone = clients.find(source.data)
    paths = clients.divide(
        everyone,
        upstream=_upstream(experiment, len(everyone)),
        clients=experiment.cells.clients,
        seed=seed,
    )
    if paths.upstream:
        names = ", ".join(path.name for path in paths.upstream)
        resources.log(f"the base is pre-trained on {names}; all others are clients")
    make = clients.of_texts if clients.is_text(everyone[0]) else clients.of_images
    return make(experiment, source, paths, resources)


EXPERIMENT = Experiment(
    name="clients",
    make_problem=make_problem,
    summary="your own clients, with images or texts",
    source=Source(),
    cells=Cells(heterogeneity=(NATURAL,), clients=0),
    lora=Lora(targets=(AUTO,), whole=(AUTO,)),
    merging=Merging(curvature=AUTO),
    pretraining=Pretraining(steps=800, batch_size=0, learning_rate=0.0),
    presets={"simulate": {"participation.cohort": "0.25"}},
    natural=True,
    resolve=resolve,
    files=lambda e: bases.user_files(e.source.data, e.source.checkpoint),
)
