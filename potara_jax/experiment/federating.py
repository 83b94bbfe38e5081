"""Federated algorithms as phases, under the conditions that the settings ask for."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import optax

from potara_jax.clients.axis import Layout
from potara_jax.clients.mesh import everywhere, make_mesh
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.evaluation.metrics import common_evaluator, evaluator
from potara_jax.experiment.phases import Evaluate, Phase
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.settings import Settings
from potara_jax.federated import factors, privacy, probing, rounds, wire
from potara_jax.federated.conditions import Conditions, size
from potara_jax.federated.interface import Algorithm, Shared
from potara_jax.federated.registry import load_all
from potara_jax.federated.wire import Privacy, Wire


def training(settings: Settings, learning_rate: float | None = None) -> Train:
    """What a client does in a round; default: at the settings' learning rate."""
    rate = learning_rate or settings.learning_rate
    optimizer = optax.adamw(rate, weight_decay=settings.weight_decay)
    return Train(optimizer, steps=settings.local_steps, batch_size=settings.batch_size)


def conditions(settings: Settings) -> Conditions:
    """Who takes part in federated rounds."""
    number = int if settings.cohort.isdecimal() else float
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
    run = rounds.make_round(algorithm, layout=layout(settings), **how)
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
    run = rounds.make_round(algorithm, layout=layout(settings))
    score = _scorer(settings, problem, algorithm)
    return Phase("local", algorithm, run, settings.local_rounds, score)._replace(**more)


def _scorer(settings, problem: Problem, algorithm: Algorithm) -> Evaluate:
    task = algorithm.predict(problem.task)
    if is_personal(algorithm, problem):
        return evaluator(task, layout=measuring_layout(settings))
    score = common_evaluator(task)

    def first(shared, models, test):
        return score(shared, jax.tree.map(lambda x: x[0], models), test)

    return first


def layout(settings: Settings) -> Layout:
    """How clients are trained: over all devices that there are."""
    return Layout(settings.chunk, make_mesh() if jax.device_count() > 1 else None)


def placed(settings: Settings, problem: Problem) -> Problem:
    """The problem with its base on all devices, once, and not in every call."""
    mesh = layout(settings).mesh
    if mesh is None:
        return problem
    return problem._replace(base=everywhere(mesh, problem.base))


def measuring_layout(settings: Settings) -> Layout:
    """How clients are measured: one at a time on a CPU, to fit its cache."""
    how = layout(settings)
    return how._replace(chunk=1) if jax.default_backend() == "cpu" else how


def is_personal(algorithm: Algorithm, problem: Problem) -> bool:
    """Whether clients end with models of their own."""
    shared, start = _beginning(algorithm, problem, clients=2)
    return probing.is_personal(algorithm, shared, start.server, start.states)


def _beginning(algorithm: Algorithm, problem: Problem, *, clients: int):
    """What clients share, and the progress, before the first round."""
    federation = next(iter(problem.federations.values()))
    adapter = problem.adapter(jax.random.key(0))
    start = rounds.start(algorithm, rounds.stack(adapter, clients=clients))
    shared = Shared(problem.base, federation.pool)
    return rounds.known(algorithm.turn(0), shared, start.server, 0), start


def rank_of(algorithm: Algorithm, problem: Problem) -> int | None:
    """The rank of an algorithm's model; None where that is not one adapter of the base
    as it was.
    """
    adapter = problem.adapter(jax.random.key(0))

    def model():
        shared, start = _beginning(algorithm, problem, clients=1)
        found = rounds.personalised(algorithm, shared, start, clients=1)
        return jax.tree.map(lambda x: x[0], found)

    found = jax.eval_shape(model)
    one = jax.tree.structure(found) == jax.tree.structure(adapter)
    if not one or probing.changes_base(algorithm, problem.base, adapter):
        return None
    return factors.rank_of(found)


def check(settings: Settings) -> None:
    """Raise `ValueError` where the conditions cannot be met: where all clients are
    newcomers, or an account of privacy is wanted and cannot be had.
    """
    size(conditions(settings), settings.clients)
    if settings.privacy_clip is not None:
        asked = Privacy(settings.privacy_clip, settings.privacy_noise)
        privacy.epsilon(asked, clients=2, cohort=1, rounds=1, delta=0.1)


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
    shared, start = _beginning(phase.algorithm, problem, clients=settings.clients)

    def alone(turn: Algorithm) -> bool:
        upload = rounds.upload_shape(turn, shared, start, federation.train)
        return probing.sums_alone(turn, start.server, start.states, upload)

    return all(map(alone, phase.algorithm.turns or (phase.algorithm,)))
