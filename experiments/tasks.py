"""Sixteen clients with a generated text task each, some of which contradict.

    potara run tasks                     (or: make tasks)

A byte-level Llama of 1.1 million parameters is pre-trained on the spot on short inputs
of twelve of the sixteen tasks. Client `k` has longer inputs of task `k`. Four clients
share their words in pairs that ask for different answers, which no prompt tells apart;
eight have words that the base knows and no other client has; and four have words that
the base never saw. Nothing is downloaded.

The setting is this project's own. The learning rate was chosen on held-out examples of
a seed that is not among the defaults (100); the lengths of inputs and the rounds with
another base and other examples (`--base-seed 7 --seeds 100`).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np

from potara_jax.data import generated, tokens
from potara_jax.data.tokens import Packed
from potara_jax.experiment.language import (
    Language,
    Model,
    pool_of,
    pretrained,
    problem_of,
)
from potara_jax.experiment.problem import Held, Problem, dealt, federations
from potara_jax.models.llama import LlamaConfig

MODEL = LlamaConfig(
    vocabulary=tokens.of_bytes().size,
    width=160,
    hidden=416,
    depth=4,
    heads=4,
    key_heads=2,
    theta=10000.0,
    context=26,
)


@dataclasses.dataclass(frozen=True)
class Tasks(Language):
    """Federated and local LoRA on a Llama for generated tasks, merged by Potara."""

    out: Path = Path("runs/tasks")
    """Run folder. A finished run is shown again, an unfinished one is continued."""
    clients: int = 16
    """Number of clients; client `k` has task `k` of the sixteen, in turn."""
    federated_rounds: int = 16
    """Rounds of FedIT."""
    local_rounds: int = 6
    """Rounds that each client trains alone: the local phase, and fine-tuning."""
    learning_rate: float = 2.5e-3
    """AdamW's learning rate; its state is fresh in every round."""
    targets: tuple[str, ...] = (".*_proj",)
    """Modules to adapt: regular expressions for the end of a module's path."""
    base_steps: int = 700
    """Steps of the base's pre-training."""
    examples: int = 200
    """Examples of a task, of all clients, for training, measuring and testing."""
    seen: int = 12
    """Tasks that the base is pre-trained on, of the sixteen."""
    grid_points: int = 7
    """Merge weights that grid search and the oracles try."""
    merges: tuple[str, ...] = (
        *("uniform", "potara delta", "potara delta, rank r", "hermite", "grid"),
        *("ties", "slerp"),
    )
    """Rows of the table that merge, by name; potara factor, potara core and
    hermite_bayes are always there. The slow ones are left out."""

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
    how = {"batch_size": 32, "rate": 2e-3}
    read = partial(pretrained, settings, MODEL, upstream, note, **how)
    problem = problem_of(settings, Model(tokens.of_bytes(), MODEL, read), held)
    return problem._replace(held=Held("task", tuple(generated.TASKS)))


def _upstream(settings: Tasks, known: set[str]) -> Packed:
    """Short examples of the tasks that the base is to see, many to a row."""
    rng = np.random.default_rng([settings.base_seed, 1])
    made = [
        example
        for task in list(generated.TASKS)[: settings.seen]
        for example in generated.at_most(rng, task, 700, long=False)
        if example.prompt not in known
    ]
    choices, _ = tokens.encode(made, tokens.of_bytes(), context=MODEL.context)
    return tokens.packed(choices)
