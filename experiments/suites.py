"""What suites of public text tasks share: one task a client, one pre-trained Llama."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from potara_jax.data import catalogue
from potara_jax.data.catalogue import Source
from potara_jax.data.text import Example
from potara_jax.experiment.language import (
    Language,
    encoded,
    loaded,
    pool_of,
    problem_of,
)
from potara_jax.experiment.problem import Held, Problem, dealt, federations
from potara_jax.experiment.settings import Precision, check_least


@dataclasses.dataclass(frozen=True)
class Suite(Language):
    """Federated and local LoRA on a pre-trained Llama, one task a client."""

    checkpoint: str = "meta-llama/Llama-3.2-3B"
    """Folder, or name on Hugging Face's hub, of a Llama or Qwen."""
    data_dir: Path = catalogue.DEFAULT
    """Folder of tensorflow-datasets; what it lacks is downloaded into it."""
    precision: Precision = "bfloat16"
    """Of the frozen base; activations are in bfloat16 with the last two."""
    remat: bool = True
    """Compute activations again for the gradient: less memory, a third more time."""
    clients: int = 8
    """Number of clients; each has one of the eight tasks, in turn."""
    train_examples: int = 1000
    """Training examples of a task, of which a tenth is held out, at most."""
    test_examples: int = 500
    """Test examples of a task, at most."""
    context: int = 512
    """The most tokens of an example; a longer one loses the front of its prompt."""
    seeds: tuple[int, ...] = (0,)
    """Every seed draws the splits, the clients, the initial factors and the batches."""
    rank: int = 16
    """Rank of the LoRA factors."""
    alpha: float = 32.0
    """LoRA's alpha: a delta is scaled by alpha / rank."""
    federated_rounds: int = 50
    """Rounds of FedIT."""
    longer_rounds: int = 600
    """Rounds to which a federated model goes on, as a baseline that is not merged."""
    local_rounds: int = 300
    """Rounds that each client trains alone: the local phase, and fine-tuning."""
    learning_rate: float = 3e-4
    """AdamW's learning rate; its state is fresh in every round."""
    merges: tuple[str, ...] = ("uniform", "potara core, per module", "fisher", "grid")
    """Rows of the table that merge, by name; potara factor, potara core and
    hermite_bayes are always there."""

    def check(self) -> None:
        """As `Language.check`, and those of a suite."""
        super().check()
        check_least(self, 8, "train_examples", "test_examples", "context")


def problem(sources: Mapping[str, Source], settings: Suite, note) -> Problem:
    """A pre-trained Llama and its federations, one a heterogeneity and seed."""
    model = loaded(settings.checkpoint)
    parts = [
        _drawn(source, part, settings)
        for source in sources.values()
        for part in ("train", "test")
    ]
    examples = [example for part in parts for example in part]
    context = min(settings.context, model.config.context)
    pool = pool_of(encoded(examples, model.tokenizer, context, note))
    sizes = [len(part) for part in parts]
    strata = np.repeat(np.arange(len(parts)) // 2, sizes)
    testing = np.repeat(np.arange(len(parts)) % 2 == 1, sizes)
    how = {"testing": testing, "most": settings.test_examples}
    held = federations(settings, partial(dealt, settings, pool, strata, **how))
    problem = problem_of(settings, model, held)
    return problem._replace(held=Held("task", tuple(sources)))


def _drawn(source: Source, part: str, settings) -> list[Example]:
    """So many examples of a part, the same for every seed of a run."""
    found = catalogue.texts(source, part, settings.data_dir)
    wanted = {"train": settings.train_examples, "test": settings.test_examples}[part]
    order = np.random.default_rng([settings.base_seed, 2]).permutation(len(found))
    return [found[i] for i in order[:wanted]]
