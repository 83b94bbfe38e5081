"""Accuracy of every federated algorithm on the digits, through every wire.

    python benchmarks/wires.py                    all algorithms, a Markdown table
    python benchmarks/wires.py fedit scaffold     some of them

Ten clients at Dirichlet 0.5, a ViT of two blocks, 20 rounds, one seed: small, to show
what a wire costs an algorithm and not how good the algorithm is. (With one block,
FedPer and FedRep would send nothing.) Where changes are clipped all clients weigh
alike. `-` is a wire that makes no sense for the algorithm.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import jax
import numpy as np

from potara_jax import federated
from potara_jax.experiment import federating
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Problem, Resources
from potara_jax.experiments import digits
from potara_jax.federated.progress import known, personalised, with_feedback
from potara_jax.federated.registry import algorithms
from potara_jax.keys import subkey

CELL = "0.5", 0
SMALL = {
    "cells.heterogeneity": CELL[:1],
    "cells.seeds": CELL[1:],
    "cells.clients": 10,
    "source.depth": 2,
    "federated.rounds": 20,
}
WIRES = {
    "as it is": {},
    "bfloat16": {"compression": "bfloat16"},
    "int8": {"compression": "int8"},
    "top_k 0.1": {"compression": "top_k", "top_k_share": 0.1},
    "clip 0.5": {"privacy_clip": 0.5, "privacy_noise": 0.0},
}


def through(experiment: Experiment, wire: dict) -> Experiment:
    """The experiment with a wire."""
    named = {f"communication.{name}": value for name, value in wire.items()}
    return experiment.set(named)


def accuracy(experiment: Experiment, problem: Problem, name: str) -> float:
    """The clients' mean accuracy after the rounds of an algorithm."""
    algorithm = federating.tuned_algorithm(experiment, problem.task, name)
    last, federation = experiment.federated.rounds, problem.federations[CELL]
    phase = federating.federated_phase(
        experiment, problem, algorithm, name=name, last=last
    )
    cell_key = jax.random.key(CELL[1])
    key = subkey(cell_key, "federated")
    adapter = problem.adapter(subkey(cell_key, "adapter"))
    adapters = federated.stack(adapter, clients=experiment.cells.clients)
    shared = federated.Shared(problem.base, federation.pool)
    begin = federated.start(algorithm, adapters, key, phase.conditions)
    begin = with_feedback(algorithm, phase.wire, shared, begin, federation.train)
    args = phase.round, shared, federation.train, begin, key
    *_, step = federated.iterate(*args, last=last)
    args = algorithm, shared, step.progress, federation.train
    models = personalised(*args, number=last)
    turn = algorithm.turn(last)
    score = phase.score(
        known(turn, shared, step.progress.server, last), models, federation.test
    )
    return float(np.mean(score.accuracy))


def row(
    experiments: dict[str, Experiment], problem: Problem, name: str
) -> Iterator[str]:
    """An algorithm's cells of the table."""
    yield f"`{name}`"
    for experiment in experiments.values():
        try:
            yield f"{100 * accuracy(experiment, problem, name):.1f}"
        except ValueError:
            yield "-"


def main(names: list[str]) -> None:
    """Print the table, row by row."""
    small = digits.EXPERIMENT.set(SMALL)
    problem = small.make_problem(small, Resources())
    experiments = {name: through(small, wire) for name, wire in WIRES.items()}
    print(f"| | {' | '.join(experiments)} |")
    print("| --- |" + " ---: |" * len(experiments))
    for name in names:
        print(f"| {' | '.join(row(experiments, problem, name))} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or [name for name in algorithms() if name != "local"])
