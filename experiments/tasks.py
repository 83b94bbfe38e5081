"""Sixteen clients with a generated text task each, some of which contradict.

    potara run tasks                     (or: make tasks)

A byte-level Llama of 1.1 million parameters is pre-trained on short inputs of twelve of
the sixteen tasks. Client `k` has longer inputs of task `k`. Four clients share their
words in pairs that ask for different answers, which no prompt tells apart; eight have
words that the base knows and no other client has; and four have words that the base
never saw. Nothing is downloaded.

The setting is this project's own. The learning rate was chosen on held-out examples of
a seed that is not among the defaults (100); the lengths of inputs and the rounds with
another base and other examples (`--pretraining.seed 7 --cells.seeds 100`).
"""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np

from potara_jax.data import generated, tokens
from potara_jax.data.text import Example
from potara_jax.data.tokens import Choices, Tokenizer
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import ClientContents, Problem, Resources
from potara_jax.experiment.problems import bases, federations, language
from potara_jax.experiment.problems.language import LanguageModel
from potara_jax.experiment.settings import (
    Cells,
    Federated,
    Local,
    Lora,
    Merging,
    Pretraining,
    Training,
    require_at_least,
    require_that,
)
from potara_jax.models.llama import LlamaConfig

_UPSTREAM = 700  # examples of a task that the base learns, at most
_MODEL = LlamaConfig(
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
class Source:
    """The generated examples."""

    examples: int = 200
    """Examples of a task, of all clients, for training, measuring and testing."""
    seen: int = 12
    """Tasks that the base is pre-trained on, of the sixteen."""
    normalise: bool = False
    """Choose options by their log-likelihood per token, not whole."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for a value that cannot be."""
        number = len(generated.TASKS)
        good = 1 <= self.seen <= number
        require_that(good, "source.seen", self.seen, f"from 1 to {number}")
        require_at_least(self, "source", 20, "examples")


def make_problem(experiment: Experiment, resources: Resources) -> Problem:
    """The Llama, and its federations."""
    source, settings = experiment.source, bases.settings_of(experiment)
    rng = np.random.default_rng([settings.seed, 0])
    tasks = [generated.generate(rng, x, source.examples) for x in generated.TASKS]
    examples = [example for task in tasks for example in task]
    tokenizer = tokens.of_bytes()
    pool = language.batch(_encode(examples, tokenizer))
    strata = np.repeat(np.arange(len(tasks)), source.examples)
    cells = federations.dealt(experiment, pool, strata)
    prompts = {example.prompt for example in examples}
    upstream = _upstream(source.seen, settings.seed, known=prompts)
    rows = tokens.pack_texts(_encode(upstream, tokenizer))
    read = partial(language.pretrain, _MODEL, rows, settings, resources)
    return language.problem(
        experiment,
        LanguageModel(tokenizer, _MODEL, read),
        cells,
        ClientContents("task", tuple(generated.TASKS)),
        normalise=source.normalise,
    )


def _upstream(seen: int, seed: int, *, known: set[str]) -> list[Example]:
    """Short examples of the tasks that the base is to see, none of them a client's."""
    rng = np.random.default_rng([seed, 1])
    return [
        example
        for task in list(generated.TASKS)[:seen]
        for example in generated.generate_up_to(rng, task, _UPSTREAM, long=False)
        if example.prompt not in known
    ]


def _encode(examples: list[Example], tokenizer: Tokenizer) -> Choices:
    return tokens.encode(examples, tokenizer, context=_MODEL.context)[0]


EXPERIMENT = Experiment(
    name="tasks",
    make_problem=make_problem,
    summary="a small Llama on generated text tasks",
    source=Source(),
    cells=Cells(heterogeneity=("tasks",), clients=16),
    lora=Lora(targets=(".*_proj",)),
    training=Training(learning_rate=2.5e-3),
    federated=Federated(rounds=16),
    local=Local(rounds=6),
    # Without the merges that are slow.
    merging=Merging(
        curvature="sampled",
        grid_points=7,
        methods=(
            *("uniform", "potara delta", "potara delta, rank r", "hermite", "grid"),
            *("ties", "slerp"),
        ),
    ),
    pretraining=Pretraining(steps=700, batch_size=32, learning_rate=2e-3),
    presets={
        "study": {"cells.heterogeneity": ("tasks", "shards2", "0.5", "1")},
        "simulate": {"participation.cohort": "4"},
    },
)
