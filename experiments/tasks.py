"""Sixteen clients on generated text tasks that contradict each other.

    potara run tasks                     (or: make tasks)

A byte-level Llama of 1.1 million parameters is pre-trained on the spot on six of the
sixteen tasks. Each client then has one task: six of them those that the base has seen,
six the same words with another meaning, which no prompt tells apart, and four with
words that the base never saw. Nothing is downloaded.

The setting is this project's own: learning rate and rounds were chosen on the held-out
examples of a seed that is not among the defaults (100).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np

from experiments.language import (
    Language,
    pool_of,
    pretrained,
    problem_of,
)
from experiments.problem import Problem, dealt, federations
from potara_jax.data import generated, tokens
from potara_jax.data.federation import Batch
from potara_jax.models.llama import LlamaConfig

MODEL = LlamaConfig(
    vocabulary=tokens.of_bytes().size,
    width=128,
    hidden=320,
    depth=6,
    heads=4,
    key_heads=2,
    theta=10000.0,
    context=64,
)


@dataclasses.dataclass(frozen=True)
class Tasks(Language):
    """Federated and local LoRA on a Llama for generated tasks, merged by Potara."""

    out: Path = Path("runs/tasks")
    """Run folder. A finished run is shown again, an unfinished one is continued."""
    clients: int = 16
    """Number of clients; client `k` has task `k` of the sixteen, in turn."""
    federated_rounds: int = 20
    """Rounds of FedIT."""
    local_rounds: int = 10
    """Rounds that each client trains alone: the local phase, and fine-tuning."""
    examples: int = 240
    """Examples of a task, of all clients, for training, measuring and testing."""
    seen: int = 6
    """Tasks that the base is pre-trained on, of the sixteen."""

    def check(self) -> None:
        """As `Language.check`, and those of the tasks."""
        super().check()
        most = len(generated.TASKS)
        if not 1 <= self.seen <= most:
            raise ValueError(f"--seen is {self.seen}: it must be from 1 to {most}")
        if self.examples < 20:
            raise ValueError(f"--examples is {self.examples}: it must be 20 or more")


def problem(settings: Tasks, note) -> Problem:
    """The Llama, and its federations, one a heterogeneity and seed."""
    rng = np.random.default_rng([settings.base_seed, 0])
    made = {n: generated.make(rng, n, settings.examples) for n in generated.TASKS}
    examples = [example for own in made.values() for example in own]
    choices, _ = tokens.encode(examples, tokens.of_bytes(), context=MODEL.context)
    strata = np.repeat(np.arange(len(made)), settings.examples)
    pool = pool_of(choices)
    held = federations(settings, partial(dealt, settings, pool, strata))
    upstream = _upstream(settings, {example.prompt for example in examples})
    how = {"batch_size": 64, "rate": 2e-3}
    read = partial(pretrained, settings, MODEL, upstream, note, **how)
    return problem_of(settings, MODEL, read, held)


def _upstream(settings: Tasks, known: set[str]) -> Batch:
    """Other examples of the tasks that the base is to see."""
    rng = np.random.default_rng([settings.base_seed, 1])
    made = [
        example
        for task in generated.TASKS[: settings.seen]
        for example in generated.make(rng, task, 2 * settings.examples)
        if example.prompt not in known
    ]
    return pool_of(tokens.encode(made, tokens.of_bytes(), context=MODEL.context)[0])
