"""Generated text tasks: the clients' examples, and a Llama that learns short ones."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np

from potara_jax.data import generated, tokens
from potara_jax.data.text import Example
from potara_jax.data.tokens import Choices, Tokenizer
from potara_jax.experiment.checks import require_at_least, require_that
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Federations, Resources
from potara_jax.experiment.problems import bases, federations, language
from potara_jax.experiment.problems.language import LanguageModel
from potara_jax.models.llama import LlamaConfig

_UPSTREAM = 700  # maximum of examples per task that the base learns
_CONFIG = LlamaConfig(
    vocabulary=256 + len(tokens.SPECIAL),
    width=160,
    hidden=416,
    depth=4,
    heads=4,
    key_heads=2,
    theta=10000.0,
    context=26,
)


@dataclasses.dataclass(frozen=True)
class GeneratedTasks:
    """The generated examples."""

    examples: int = 200
    """Examples per task, of all clients, for training, measuring and testing."""
    seen: int = 12
    """Tasks that the base is pre-trained on, of the sixteen."""
    normalise: bool = False
    """Choose options by their log-likelihood per token, not in total."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for an invalid value."""
        number = len(generated.TASKS)
        good = 1 <= self.seen <= number
        require_that(good, "source.seen", self.seen, f"from 1 to {number}")
        require_at_least(self, "source", 20, "examples")


def examples(experiment: Experiment) -> list[Example]:
    """The clients' examples, with long inputs: equally many of every task."""
    seed, number = bases.settings_of(experiment).seed, experiment.source.examples
    rng = np.random.default_rng([seed, 0])
    tasks = [generated.generate(rng, task, number) for task in generated.TASKS]
    return [example for task in tasks for example in task]


def dealt(experiment: Experiment, examples: list[Example]) -> Federations:
    """Deal examples to clients by task, as federations."""
    pool = language.batch(_encode(examples, tokens.of_bytes()))
    number = experiment.source.examples
    strata = np.repeat(np.arange(len(generated.TASKS)), number)
    return federations.dealt(experiment, pool, strata)


def model(
    experiment: Experiment, examples: list[Example], resources: Resources
) -> LanguageModel:
    """A Llama of bytes that learns short examples when it is read.

    They belong to the tasks that it sees, and none of them is a client's.

    Args:
      experiment: with its settings.
      examples: which it learns; they belong to the tasks that it sees, and none of them
        is a client's.
      resources: what making the problem may use.
    """
    tokenizer, settings = tokens.of_bytes(), bases.settings_of(experiment)
    known = {example.prompt for example in examples}
    rng = np.random.default_rng([settings.seed, 1])
    upstream = [
        example
        for task in list(generated.TASKS)[: experiment.source.seen]
        for example in generated.generate_up_to(rng, task, _UPSTREAM, long=False)
        if example.prompt not in known
    ]
    rows = tokens.pack_texts(_encode(upstream, tokenizer))
    read = partial(language.pretrain, _CONFIG, rows, settings, resources)
    return LanguageModel(tokenizer, _CONFIG, read)


def _encode(examples: list[Example], tokenizer: Tokenizer) -> Choices:
    return tokens.encode(examples, tokenizer, context=_CONFIG.context)[0]
