"""Federated algorithms as phases, under the conditions that the settings ask for."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from experiments.phases import Evaluate, Phase
from experiments.problem import Problem
from experiments.settings import Settings
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.evaluation.metrics import common_evaluator, evaluator
from potara_jax.federated import privacy, rounds, wire
from potara_jax.federated.conditions import Conditions, size
from potara_jax.federated.interface import Algorithm
from potara_jax.federated.registry import load_all
from potara_jax.federated.wire import Privacy, Wire


def training(settings: Settings, learning_rate: float | None = None) -> Train:
    """What a client does in a round; default: at the settings' learning rate."""
    rate = learning_rate or settings.learning_rate
    optimizer = optax.adamw(rate, weight_decay=settings.weight_decay)
    return Train(optimizer, steps=settings.local_steps, batch_size=settings.batch_size)


def conditions(settings: Settings) -> Conditions:
    """Who takes part in federated rounds."""
    number = int if settings.cohort.isdigit() else float
    return Conditions(
        cohort=number(settings.cohort),
        by_examples=settings.weighted_cohorts,
        dropout=settings.dropout,
        stragglers=settings.stragglers,
        newcomers=settings.newcomers,
    )


def the_wire(settings: Settings) -> Wire:
    """What happens to an upload on its way."""
    ways = {
        "none": lambda: None,
        "bfloat16": wire.bfloat16,
        "int8": wire.int8,
        "top_k": lambda: wire.top_k(settings.top_k_share),
    }
    private = settings.privacy_clip is not None
    return Wire(
        ways[settings.compression](),
        Privacy(settings.privacy_clip, settings.privacy_noise) if private else None,
    )


def make(
    settings: Settings,
    task: Task,
    name: str,
    *,
    local_rate: float | None = None,
    **how,
) -> Algorithm:
    """A registered algorithm with the settings' training.

    local_rate: the clients' learning rate, in place of the settings'. Raises
    `ValueError` for a name that is not registered.
    """
    known = load_all()
    if name not in known:
        raise ValueError(
            f"there is no algorithm '{name}'; there are {', '.join(known)}"
        )
    return known[name].make(task, training(settings, local_rate), **how)


def federated_phase(
    settings: Settings,
    problem: Problem,
    algorithm: Algorithm,
    *,
    name: str,
    last: int,
    marks: Sequence[int] = (),
    keep: Sequence[int] = (),
) -> Phase:
    """Rounds of an algorithm, scored at the marks."""
    how = {"conditions": conditions(settings), "wire": the_wire(settings)}
    run = rounds.make_round(algorithm, chunk=settings.chunk, **how)
    return Phase(
        name,
        algorithm,
        run,
        last,
        _scorer(settings, problem, algorithm),
        sorted({*marks, *keep}),
        tuple(keep),
        **how,
    )


def local_phase(settings: Settings, problem: Problem, algorithm: Algorithm, **more):
    """Rounds of every client for itself, under no conditions."""
    run = rounds.make_round(algorithm, chunk=settings.chunk)
    score = _scorer(settings, problem, algorithm)
    return Phase("local", algorithm, run, settings.local_rounds, score)._replace(**more)


def _scorer(settings, problem: Problem, algorithm: Algorithm) -> Evaluate:
    task = algorithm.predict(problem.task)
    if is_personal(algorithm, problem):
        return evaluator(task, chunk=clients_together(settings))
    score = common_evaluator(task)

    def first(shared, models, test):
        return score(shared, jax.tree.map(lambda x: x[0], models), test)

    return first


def clients_together(settings: Settings) -> int | None:
    """Clients measured at once: one on a CPU, whose cache its activations then fit."""
    return 1 if jax.default_backend() == "cpu" else settings.chunk


def is_personal(algorithm: Algorithm, problem: Problem) -> bool:
    """Whether clients keep anything of their own, so that their models may differ."""
    adapter = jax.eval_shape(problem.adapter, jax.random.key(0))
    state = jax.eval_shape(algorithm.init_client, adapter, jnp.int32(0))
    return bool(jax.tree.leaves(state))


def is_adapter(algorithm: Algorithm, problem: Problem) -> bool:
    """Whether an algorithm's model is one adapter of the base as it was."""
    adapter = jax.eval_shape(problem.adapter, jax.random.key(0))
    federation = next(iter(problem.federations.values()))

    def model(adapter):
        start = rounds.start(algorithm, rounds.stack(adapter, clients=2))
        shared = rounds.Shared(problem.base, federation.pool)
        return rounds.personalised(algorithm, shared, start, clients=2)

    found = jax.eval_shape(model, adapter)
    same = jax.tree.structure(found) == jax.tree.structure(adapter)
    shapes = lambda tree: [x.shape for x in jax.tree.leaves(tree)]
    unstacked = [shape[1:] for shape in shapes(found)]
    fixed = algorithm.rebase is Algorithm._field_defaults["rebase"]
    return fixed and same and unstacked == shapes(adapter)


def epsilon(settings: Settings, phase: Phase, problem: Problem) -> float | None:
    """Epsilon of a phase's rounds; None where there is no account of it.

    That is without privacy, or where an algorithm takes more than the clients' sum.
    """
    if settings.privacy_clip is None or not _sums_alone(settings, phase, problem):
        return None
    there, cohort = size(phase.conditions, settings.clients)
    return privacy.epsilon(
        phase.wire.privacy,
        clients=there,
        cohort=cohort,
        rounds=phase.rounds,
        delta=settings.privacy_delta,
    )


def _sums_alone(settings, phase: Phase, problem: Problem) -> bool:
    federation = next(iter(problem.federations.values()))
    adapter = problem.adapter(jax.random.key(0))
    adapters = rounds.stack(adapter, clients=settings.clients)
    start = rounds.start(phase.algorithm, adapters, phase.conditions)
    shared = rounds.Shared(problem.base, federation.pool)

    def alone(turn: Algorithm) -> bool:
        upload = rounds.upload_shape(turn, shared, start, federation.train)
        return privacy.is_private(turn, start.server, start.states, upload)

    return all(map(alone, phase.algorithm.turns or (phase.algorithm,)))
