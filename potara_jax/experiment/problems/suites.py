"""Suites of public text tasks: one pre-trained Llama, and one task per client."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from potara_jax.data import catalogue
from potara_jax.data.catalogue import Source
from potara_jax.data.text import Example
from potara_jax.experiment.checks import require_at_least, require_that
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import ClientContents, Problem, Resources
from potara_jax.experiment.problems import federations, language
from potara_jax.experiment.settings import SEEDS


@dataclasses.dataclass(frozen=True)
class Suite:
    """Public text tasks, and the model that learns them."""

    checkpoint: str = "meta-llama/Llama-3.2-3B"
    """Folder, or name on Hugging Face's hub, of a Llama or Qwen."""
    data_dir: Path = catalogue.DEFAULT
    """Folder of tensorflow-datasets; missing data sets are downloaded into it."""
    train_examples: int = 1000
    """Maximum of training examples per task; a tenth of them is held out."""
    test_examples: int = 500
    """Maximum of test examples per task."""
    examples_seed: int = 0
    """Seed that draws each task's examples, which are the same in all cells."""
    context: int = 512
    """Maximum of tokens per example; a longer one loses the start of its prompt."""
    normalise: bool = False
    """Choose options by their log-likelihood per token, not in total."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for an invalid value."""
        names = ("train_examples", "test_examples", "context")
        require_at_least(self, "source", 8, *names)
        good = 0 <= self.examples_seed < SEEDS
        expected = f"in [0, {SEEDS})"
        require_that(good, "source.examples_seed", self.examples_seed, expected)


def problem(
    tasks: Mapping[str, Source], experiment: Experiment, resources: Resources
) -> Problem:
    """A pre-trained Llama, and federations of clients with a task each.

    Args:
      tasks: by name.
      experiment: its source is a `Suite`.
      resources: the log.

    Returns:
      The problem.

    Raises:
      ValueError: the model or a data set cannot be loaded.
    """
    suite = experiment.source
    model = language.loaded(suite.checkpoint)
    parts = [
        _draw(task, part, suite)
        for task in tasks.values()
        for part in ("train", "test")
    ]
    examples = [example for part in parts for example in part]
    context = min(suite.context, model.config.context)
    choices = language.encode(examples, model.tokenizer, context, resources.log)
    numbers = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    cells = federations.dealt(
        experiment,
        language.batch(choices),
        numbers // 2,
        test=suite.test_examples,
        testing=numbers % 2 == 1,
    )
    contents = ClientContents("task", tuple(tasks))
    return language.problem(
        experiment, model, cells, contents, normalise=suite.normalise
    )


def _draw(task: Source, part: Literal["train", "test"], suite: Suite) -> list[Example]:
    """Some examples of a part, the same in all cells."""
    examples = catalogue.texts(task, part, suite.data_dir)
    number = {"train": suite.train_examples, "test": suite.test_examples}[part]
    rng = np.random.default_rng([suite.examples_seed, 2])
    return [examples[i] for i in rng.permutation(len(examples))[:number]]
