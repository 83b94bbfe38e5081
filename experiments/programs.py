"""The compiled programs of a run: each is compiled once, for all its cells."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import optax

from experiments.phases import Phase
from experiments.settings import Settings
from potara_jax.clients.axis import over_clients
from potara_jax.clients.task import Task
from potara_jax.clients.training import local_training
from potara_jax.evaluation.metrics import common_evaluator, evaluator
from potara_jax.federated.fedit import fedit
from potara_jax.federated.local import local_only
from potara_jax.federated.rounds import make_round
from potara_jax.merging.curvature import LIKELIHOODS
from potara_jax.merging.merges import merge
from potara_jax.merging.programs import hermite_merge, loss_curves, potara
from potara_jax.merging.weights import DAMPINGS, potara_weight

MARKS = 4


class Programs(NamedTuple):
    """Phases, and jitted programs over all clients.

    `potara`: by the space of the curvature. `merge`: by name, of stacked adapters and
    weights. `weight_at(curvature, examples, values)`: Potara's weights `[D, C]` at
    damping values `[D]`; `module_weights(curvature, examples)`: by module path.
    """

    federated: Phase
    local: Phase
    fine_tuning: Phase
    potara: dict[str, Callable]
    merge: dict[str, Callable]
    hermite: Callable
    curves: Callable
    evaluate: Callable
    evaluate_common: Callable
    module_weights: Callable
    weight_at: Callable


def make_programs(settings: Settings, task: Task) -> Programs:
    """All programs of a run."""
    optimizer = optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay)
    train = local_training(
        optimizer, steps=settings.local_steps, batch_size=settings.batch_size
    )
    together = clients_together(settings)
    local = local_only(task, train)
    local_round = make_round(local, chunk=settings.chunk)
    damping = DAMPINGS[settings.damping]
    return Programs(
        federated=_federated(settings, task, train),
        local=Phase("local", local, local_round, settings.local_rounds),
        fine_tuning=Phase("fine-tuning", local, local_round, settings.local_rounds),
        potara={
            space: potara(
                LIKELIHOODS[settings.curvature](_one_example(task.logits)),
                damping(settings.damping_value),
                space=space,
                clients_at_once=together,
            )
            for space in ("factor", "core")
        },
        merge={
            "factor": _merge(space="factor"),
            "delta": _merge(space="delta"),
            "truncated": _merge(space="delta", rank=settings.rank),
        },
        hermite=hermite_merge(task.loss, clients_at_once=together),
        curves=loss_curves(task.loss, clients_at_once=together),
        evaluate=evaluator(task, chunk=together),
        evaluate_common=common_evaluator(task),
        module_weights=_module_weights(damping(settings.damping_value)),
        weight_at=jax.jit(_weight_at(damping)),
    )


def clients_together(settings: Settings) -> int | None:
    """Clients measured at once: one on a CPU, whose cache its activations then fit."""
    return 1 if jax.default_backend() == "cpu" else settings.chunk


def _federated(settings, task, train) -> Phase:
    algorithm, last = fedit(task, train), settings.federated_rounds
    run = make_round(algorithm, fraction=settings.fraction, chunk=settings.chunk)
    marks = sorted({max(1, last * i // MARKS) for i in range(1, MARKS + 1)})
    return Phase("federated", algorithm, run, last, marks)


def _one_example(logits):
    def one(base, adapter, example):
        return logits(base, adapter, jax.tree.map(lambda x: x[None], example))[0]

    return one


def _merge(**how):
    return jax.jit(over_clients(partial(merge, **how)))


def _module_weights(damping):
    one = lambda curvature, n: potara_weight(curvature, damping, n, per="module")
    return jax.jit(over_clients(one))


def _weight_at(damping):
    def at(curvature, examples, values):
        def one(value):
            weight = lambda c, n: potara_weight(c, damping(value), n)
            return jax.vmap(weight)(curvature, examples)

        return jax.lax.map(one, values)

    return at
