"""Your own text tasks: a Llama pre-trained on some, then one task per client.

    potara run text --data a.jsonl.gz b.jsonl

One file per task, of `text` and `label`; or `query`, `choices` and `gold`; or
`instruction`, `input` and `output`. A small Llama with byte-pair tokens is pre-trained
on a part of the first files, or `--checkpoint` names a Hugging Face folder. Clients
have one task each, in turn; no example is seen twice.

Pre-training learns answers, and not texts too: that, and its learning rate, was chosen
on a part of the base's own examples of five sentence tasks.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from potara_jax.data import text
from potara_jax.data.dealing import TASKS
from potara_jax.data.federation import Batch
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import (
    ClientContents,
    Federations,
    Problem,
    Resources,
)
from potara_jax.experiment.problems import bases, federations, texts
from potara_jax.experiment.settings import (
    Cells,
    Lora,
    Merging,
    Pretraining,
    require_at_least,
    require_that,
)


@dataclasses.dataclass(frozen=True)
class Source:
    """The user's text tasks, and the Llama that learns them."""

    data: tuple[Path, ...] = ()
    """Files of examples (.jsonl, .jsonl.gz, .json), one per task."""
    checkpoint: str | None = None
    """Folder, or name on the hub, of a Llama or Qwen. Default: one is pre-trained."""
    seen: int | None = None
    """Files, from the first, that the base is pre-trained on. Default: 7 of 10."""
    context: int | None = None
    """The most tokens of an example; a longer one loses the front of its prompt.
    Default: what 19 of 20 examples need, and every answer, 128 at most."""
    train_examples: int = 1000
    """Training examples of a task, at most."""
    test_examples: int = 200
    """Test examples of a client, at most."""
    vocabulary: int = 2048
    """Tokens of the tokenizer that is trained."""
    width: int = 128
    """Width of the Llama that is pre-trained."""
    depth: int = 4
    """Its layers."""
    normalise: bool = False
    """Choose options by their log-likelihood per token, not whole."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for a value that cannot be."""
        expected = "files of examples, one per task"
        require_that(bool(self.data), "source.data", "empty", expected)
        number = len(self.data)
        good = self.seen is None or 1 <= self.seen <= number
        require_that(good, "source.seen", self.seen, f"from 1 to {number}")
        texts.check(self)
        require_at_least(self, "source", 8, "test_examples")
        require_at_least(self, "source", 12, "train_examples")


def make_problem(experiment: Experiment, resources: Resources) -> Problem:
    """A Llama and its federations."""
    source, seed = experiment.source, bases.settings_of(experiment).seed
    files = [text.read(path) for path in source.data]
    files = texts.without_repeats(files, seed=seed, log=resources.log)
    upstream, tasks = texts.split_tasks(
        files, source.data, seen=_seen(source), train=source.train_examples, seed=seed
    )
    _log_idle(experiment, resources)

    def federate(pool: Batch, strata: np.ndarray) -> Federations:
        return federations.dealt(experiment, pool, strata, test=source.test_examples)

    names = tuple(path.name.split(".")[0] for path in source.data)
    contents = ClientContents("task", names)
    return texts.problem(
        experiment, source, upstream, tasks, federate, contents, resources
    )


def _seen(source: Source) -> int:
    if source.checkpoint:
        return 0
    default = max(1, round(0.7 * len(source.data)))
    return default if source.seen is None else source.seen


def _log_idle(experiment: Experiment, resources: Resources) -> None:
    """A line on files that no client has."""
    idle = experiment.source.data[experiment.cells.clients :]
    if TASKS in experiment.cells.heterogeneity and idle:
        names = ", ".join(path.name for path in idle)
        resources.log(f"no client has {names}, with one task each; set cells.clients")


EXPERIMENT = Experiment(
    name="text",
    make_problem=make_problem,
    summary="your own text tasks, one per client",
    source=Source(),
    cells=Cells(heterogeneity=("tasks",)),
    lora=Lora(targets=("q_proj", "v_proj")),
    merging=Merging(curvature="sampled"),
    pretraining=Pretraining(steps=800, batch_size=32, learning_rate=2e-3),
    presets={
        "study": {"cells.heterogeneity": ("tasks", "shards2", "0.5", "1")},
        "simulate": {"participation.cohort": "0.25"},
    },
    files=lambda e: bases.user_files(e.source.data, e.source.checkpoint),
)
