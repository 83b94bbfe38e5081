"""The compiled programs of a run: each is compiled once, for all its cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from experiments import recipes
from experiments.phases import Phase
from experiments.settings import Settings
from potara_jax import merging
from potara_jax.clients.task import Task, of_logits
from potara_jax.clients.training import Train
from potara_jax.evaluation.metrics import common_evaluator, evaluator
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.algorithms.local import local_only
from potara_jax.federated.conditions import Conditions
from potara_jax.federated.rounds import make_round
from potara_jax.merging import ensemble, loss_curves, sensitivity
from potara_jax.merging.weights import DAMPINGS, potara_weight

MARKS = 4


class Weigh(NamedTuple):
    """A program that weighs, and which samples it looks at."""

    program: Callable
    samples: str


class Derive(NamedTuple):
    """A program from another's curvature to weights."""

    source: str
    program: Callable


class Programs(NamedTuple):
    """Phases, and jitted programs over all clients.

    `weigh`, `derived`, `merge`: by name, see `recipes`; `rows`: what the table shows.
    `weight_at(curvature, examples, values)`: Potara's weights `[D, C]` at damping
    values `[D]`; `interval`, `sensitivity`: how sure Potara's weight is, `[C]`.
    """

    federated: Phase
    local: Phase
    fine_tuning: Phase
    rows: tuple[recipes.Row, ...]
    weigh: dict[str, Weigh]
    derived: dict[str, Derive]
    merge: dict[str, Callable]
    curves: Callable
    interval: Callable
    evaluate: Callable
    evaluate_common: Callable
    evaluate_ensemble: Callable
    weight_at: Callable
    sensitivity: Callable


def make_programs(settings: Settings, task: Task) -> Programs:
    """All programs of a run."""
    together = clients_together(settings)
    local = local_phase(settings, task)
    weighings = recipes.weighings(settings, task)
    return Programs(
        federated=federated_phase(settings, task),
        local=local,
        fine_tuning=local._replace(name="fine-tuning"),
        rows=recipes.rows(settings, task),
        weigh=_weigh(weighings, together),
        derived={
            name: Derive(d.source, jax.jit(jax.vmap(d.of)))
            for name, d in recipes.derived(settings).items()
        },
        merge={
            name: merging.combine(how.method, space=how.space, rank=how.rank)
            for name, how in recipes.mergings(settings, task).items()
        },
        curves=loss_curves(task.loss, clients_at_once=together),
        interval=merging.over_each(
            merging.bootstrap(weighings[recipes.SPECIAL].estimator),
            clients_at_once=together,
        ),
        evaluate=evaluator(task, chunk=together),
        evaluate_common=common_evaluator(task),
        evaluate_ensemble=evaluator(of_logits(ensemble(task.logits)), chunk=together),
        weight_at=jax.jit(_weight_at(DAMPINGS[settings.damping])),
        sensitivity=jax.jit(_sensitivity(settings)),
    )


def _weigh(weighings, together) -> dict[str, Weigh]:
    """One program an estimator, whatever samples it looks at."""
    estimators = {id(w.estimator): w.estimator for w in weighings.values()}
    programs = {
        key: merging.weigh(estimator, clients_at_once=together)
        for key, estimator in estimators.items()
    }
    return {
        n: Weigh(programs[id(w.estimator)], w.samples) for n, w in weighings.items()
    }


def clients_together(settings: Settings) -> int | None:
    """Clients measured at once: one on a CPU, whose cache its activations then fit."""
    return 1 if jax.default_backend() == "cpu" else settings.chunk


def local_phase(settings: Settings, task: Task) -> Phase:
    """Every client for itself."""
    algorithm = local_only(task, _training(settings))
    run = make_round(algorithm, chunk=settings.chunk)
    return Phase("local", algorithm, run, settings.local_rounds)


def _training(settings):
    optimizer = optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay)
    return Train(optimizer, steps=settings.local_steps, batch_size=settings.batch_size)


def federated_phase(settings: Settings, task: Task) -> Phase:
    """Rounds of FedIT."""
    algorithm, last = fedit(task, _training(settings)), settings.federated_rounds
    conditions = Conditions(cohort=settings.fraction)
    run = make_round(algorithm, conditions=conditions, chunk=settings.chunk)
    marks = sorted({max(1, last * i // MARKS) for i in range(1, MARKS + 1)})
    return Phase("federated", algorithm, run, last, marks, conditions)


def _weight_at(damping):
    def at(curvature, examples, values):
        def one(value):
            weight = lambda c, n: potara_weight(c, damping(value), n)
            return jax.vmap(weight)(curvature, examples)

        return jax.lax.map(one, values)

    return at


def _sensitivity(settings):
    damping, value = DAMPINGS[settings.damping], settings.damping_value
    return jax.vmap(lambda c, n: sensitivity(c, damping, value, n))
