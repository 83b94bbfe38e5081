"""Federated algorithms as phases, under an experiment's conditions."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import jax
import optax

from potara_jax import federated
from potara_jax.clients.axis import Layout
from potara_jax.clients.mesh import everywhere, make_mesh
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.evaluation.metrics import common_evaluator, evaluator
from potara_jax.experiment.checks import require_one_of, require_that
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.phases import Evaluate, Phase
from potara_jax.experiment.problem import Problem
from potara_jax.federated import accounting, wire
from potara_jax.federated.conditions import Conditions, size
from potara_jax.federated.interface import Algorithm, Shared
from potara_jax.federated.privacy import Privacy
from potara_jax.federated.registry import Make, algorithms
from potara_jax.federated.wire import Wire


def training(experiment: Experiment, learning_rate: float | None = None) -> Train:
    """What a client does in a round; by default at the experiment's learning rate."""
    settings = experiment.training
    rate = learning_rate or settings.learning_rate
    optimizer = optax.adamw(rate, weight_decay=settings.weight_decay)
    return Train(optimizer, steps=settings.steps, batch_size=settings.batch_size)


def conditions(experiment: Experiment) -> Conditions:
    """Who takes part in federated rounds."""
    settings = experiment.participation
    number = int if settings.cohort.isdecimal() else float
    return Conditions(
        cohort=number(settings.cohort),
        by_examples=settings.weighted,
        dropout=settings.dropout,
        stragglers=settings.stragglers,
        newcomers=settings.newcomers,
    )


def wire_of(experiment: Experiment) -> Wire:
    """What happens to an upload on its way."""
    settings = experiment.communication
    compressions = {
        "none": lambda: None,
        "bfloat16": wire.bfloat16,
        "int8": wire.int8,
        "top_k": lambda: wire.top_k(settings.top_k_share),
    }
    clip = settings.privacy_clip
    private = None if clip is None else Privacy(clip, settings.privacy_noise)
    return Wire(compressions[settings.compression](), private)


def make_algorithm(
    experiment: Experiment,
    task: Task,
    name: str,
    *,
    local_rate: float | None = None,
    **hyperparameters: Any,
) -> Algorithm:
    """A registered algorithm with the experiment's training.

    Args:
      experiment: whose training.
      task: what the clients learn.
      name: of the algorithm.
      local_rate: the clients' learning rate, in place of the experiment's.
      **hyperparameters: of the algorithm.

    Raises:
      ValueError: the name is not registered, or the experiment's wire makes no sense
        for the algorithm.
    """
    known = algorithms()
    require_one_of(name, "the algorithm", known)
    train, make = training(experiment, local_rate), known[name].make
    if experiment.federated.ranks and _has_ranks(make):
        hyperparameters = {"ranks": experiment.federated.ranks} | hyperparameters
    algorithm = make(task, train, **hyperparameters)
    wire.check(wire_of(experiment), algorithm)
    return algorithm


def _has_ranks(make: Make) -> bool:
    """Whether an algorithm's clients may differ in rank."""
    return "ranks" in inspect.signature(make).parameters


def tuned_algorithm(experiment: Experiment, task: Task, name: str) -> Algorithm:
    """A registered algorithm with its tuned hyper-parameters, if it has any."""
    chosen = experiment.tuned.get(name, {})
    return make_algorithm(experiment, task, name, **chosen)


# --- Phases --------------------------------------------------------------------------


def federated_phase(
    experiment: Experiment,
    problem: Problem,
    algorithm: Algorithm,
    *,
    name: str,
    last: int,
    marks: Sequence[int] = (),
    keep: Sequence[int] = (),
) -> Phase:
    """Rounds of an algorithm, scored at the marks."""
    run = federated.make_round(
        algorithm,
        conditions=conditions(experiment),
        wire=wire_of(experiment),
        layout=layout(experiment),
    )
    score = _scorer(experiment, problem, algorithm)
    return Phase(name, run, last, score, sorted({*marks, *keep}), tuple(keep))


def local_phase(experiment: Experiment, problem: Problem, name: str = "local") -> Phase:
    """Rounds in which every client trains alone, under no conditions."""
    algorithm = make_algorithm(experiment, problem.task, "local")
    run = federated.make_round(algorithm, layout=layout(experiment))
    score = _scorer(experiment, problem, algorithm)
    return Phase(name, run, experiment.local.rounds, score)


def _scorer(experiment: Experiment, problem: Problem, algorithm: Algorithm) -> Evaluate:
    task = algorithm.predict(problem.task)
    if algorithm.personal:
        return evaluator(task, layout=measuring_layout(experiment))
    score = common_evaluator(task)

    def first(shared: Shared, models: Any, test: Any) -> Any:
        return score(shared, jax.tree.map(lambda x: x[0], models), test)

    return first


def marks_of(last: int, number: int) -> list[int]:
    """A number of rounds, evenly spaced up to the last."""
    return sorted({max(1, last * i // number) for i in range(1, number + 1)})


# --- Devices -------------------------------------------------------------------------


def layout(experiment: Experiment) -> Layout:
    """The layout of training: over all devices."""
    mesh = make_mesh() if jax.device_count() > 1 else None
    return Layout(experiment.compute.chunk, mesh)


def measuring_layout(experiment: Experiment) -> Layout:
    """The layout of measuring: one client at a time on a CPU, to fit its cache."""
    spread = layout(experiment)
    one = jax.default_backend() == "cpu"
    return spread._replace(chunk=1) if one else spread


def on_all_devices(experiment: Experiment, problem: Problem) -> Problem:
    """The problem with its base copied to all devices once, not in every call."""
    mesh = layout(experiment).mesh
    if mesh is None:
        return problem
    return problem._replace(base=everywhere(mesh, problem.base))


# --- What an algorithm's model is ----------------------------------------------------


def model_rank(algorithm: Algorithm, problem: Problem) -> int | None:
    """The rank of an algorithm's model.

    None if it is not a single adapter of the unchanged base.

    Args:
      algorithm: of the rounds.
      problem: what it learns.
    """
    federation = next(iter(problem.federations.values()))
    shared = Shared(problem.base, federation.pool)
    adapter = problem.adapter(jax.random.key(0))
    return federated.model_rank(algorithm, shared, adapter)


def check_mergeable(experiment: Experiment, problem: Problem) -> None:
    """Check that the federated model can be merged, and privacy be accounted for.

    Args:
      experiment: with its settings.
      problem: what is learned.

    Raises:
      ValueError: the federated model is not a single adapter, or privacy is on and
        cannot be accounted for.
    """
    name, rank = experiment.federated.algorithm, experiment.lora.rank
    algorithm = make_algorithm(experiment, problem.task, name)
    check_private(experiment, algorithm)
    if model_rank(algorithm, problem) != rank:
        raise ValueError(
            f"federated.algorithm is {name}: its model is not one adapter of the base, "
            f"of rank {rank}, to merge with a local one"
        )


# --- Conditions that cannot be met ---------------------------------------------------


def check(experiment: Experiment) -> None:
    """Check that an experiment's conditions can be met.

    Raises:
      ValueError: all clients are newcomers, a client's rank is too large, or privacy is
        on and cannot be accounted for.
    """
    size(conditions(experiment), experiment.cells.clients)
    for rank in experiment.federated.ranks:
        largest = experiment.lora.rank
        expected = f"at most lora.rank, which is {largest}"
        require_that(rank <= largest, "federated.ranks", rank, expected)
    if (private := wire_of(experiment).privacy) is not None:
        accounting.epsilon(private, clients=2, cohort=1, rounds=1, delta=0.1)


def check_ranks(experiment: Experiment) -> None:
    """Raise `ValueError` if ranks are asked for that the federated model has not."""
    settings = experiment.federated
    if settings.ranks and not _has_ranks(algorithms()[settings.algorithm].make):
        names = [name for name, entry in algorithms().items() if _has_ranks(entry.make)]
        raise ValueError(
            f"federated.ranks is set, but all clients of {settings.algorithm} have one "
            f"rank: choose federated.algorithm of {', '.join(names)}"
        )


def check_shared(
    experiment: Experiment, problem: Problem, algorithm: Algorithm
) -> None:
    """Raise `ValueError` if all modules that a problem adapts stay with the clients."""
    numbers = size(conditions(experiment), experiment.cells.clients)
    init = lambda key: algorithm.init(problem.adapter(key), numbers)
    server = jax.eval_shape(init, jax.random.key(0))
    if algorithm.name != "local" and not jax.tree.leaves(server):
        raise ValueError(
            f"{algorithm.name} shares nothing here: all that is trained stays with the "
            "clients (fedper and fedrep keep the adapters of the last block private); "
            "adapt more blocks, or take another algorithm"
        )


def check_private(experiment: Experiment, algorithm: Algorithm) -> None:
    """Raise `ValueError` if privacy is on and cannot be accounted for."""
    if wire_of(experiment).privacy is not None:
        accounting.check(algorithm, conditions(experiment))


def epsilon(experiment: Experiment, phase: Phase) -> float | None:
    """Epsilon of a phase's rounds.

    None without privacy, or if the algorithm declares that its server takes more than
    the clients' sum.

    Args:
      experiment: with its settings.
      phase: with its rounds.

    Raises:
      ValueError: the algorithm declares nothing.
    """
    if phase.wire.privacy is None or phase.algorithm.sum_only is False:
        return None
    return accounting.account(
        phase.algorithm,
        phase.wire,
        phase.conditions,
        clients=experiment.cells.clients,
        rounds=phase.rounds,
        delta=experiment.communication.privacy_delta,
    )
