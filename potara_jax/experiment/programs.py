"""The compiled programs of a run: each is compiled once, for all its cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from potara_jax import merging
from potara_jax.evaluation.metrics import common_evaluator, evaluator, in_parts
from potara_jax.experiment import federating, recipes
from potara_jax.experiment.federating import measuring_layout
from potara_jax.experiment.phases import Phase
from potara_jax.experiment.problem import Problem, Writer
from potara_jax.experiment.settings import Settings
from potara_jax.merging import ensemble, loss_curves, sensitivity
from potara_jax.merging.weights import DAMPINGS, potara_weight

MARKS = 4
_WRITTEN_AT_ONCE = 32  # a cache each, of 65 MB where a 3B model reads 570 tokens


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
    `write(base, adapter, prompts, counts, most)`: one client's answers, or None.
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
    write: Callable | None
    weight_at: Callable
    sensitivity: Callable


def make_programs(settings: Settings, problem: Problem) -> Programs:
    """All programs of a run."""
    phases = parents(settings, problem, marks=MARKS, longer=settings.longer_rounds)
    return merging_programs(settings, problem, *phases)


def merging_programs(
    settings: Settings, problem: Problem, federated: Phase, local: Phase
) -> Programs:
    """All programs of a run with the two phases given."""
    layout, task = measuring_layout(settings), problem.task
    rows = recipes.rows(settings, task)
    used = {row.weighing for row in rows}
    weighings = recipes.weighings(settings, task, used)
    return Programs(
        federated=federated,
        local=local,
        fine_tuning=local._replace(name="fine-tuning"),
        rows=rows,
        weigh=_weigh(weighings, layout),
        derived={
            name: Derive(d.source, jax.jit(jax.vmap(d.of)))
            for name, d in recipes.derived(settings, used).items()
        },
        merge={
            name: merging.combine(how.method, space=how.space, rank=how.rank)
            for name, how in recipes.mergings(settings, task).items()
        },
        curves=loss_curves(task.loss, layout=layout),
        interval=merging.over_each(
            merging.bootstrap(weighings[recipes.SPECIAL].estimator),
            layout=layout,
        ),
        evaluate=evaluator(task, layout=layout),
        evaluate_common=common_evaluator(task),
        evaluate_ensemble=evaluator(task.again(ensemble), layout=layout),
        write=problem.writer and writing(problem.writer),
        weight_at=jax.jit(_weight_at(DAMPINGS[settings.damping])),
        sensitivity=jax.jit(_sensitivity(settings)),
    )


def _weigh(weighings, layout) -> dict[str, Weigh]:
    """One program an estimator, whatever samples it looks at."""
    estimators = {id(w.estimator): w.estimator for w in weighings.values()}
    programs = {
        key: merging.weigh(estimator, layout=layout)
        for key, estimator in estimators.items()
    }
    return {
        n: Weigh(programs[id(w.estimator)], w.samples) for n, w in weighings.items()
    }


def parents(
    settings: Settings, problem: Problem, *, marks: int = 0, longer: int = 0
) -> tuple[Phase, Phase]:
    """The federated phase, scored at some marks, and the local one.

    longer: rounds to which the federated phase goes on, where they are more than those
      of the model to merge, which is kept then. Raises `ValueError` where the federated
      model is no single adapter to merge.
    """
    algorithm = federating.make(settings, problem.task, settings.federated)
    if federating.rank_of(algorithm, problem) != settings.rank:
        raise ValueError(
            f"--federated is {settings.federated}: its model is not one adapter of the "
            f"base, of rank {settings.rank}, to merge with a local one"
        )
    last = settings.federated_rounds
    at = marks_of(last, marks)
    federated = federating.federated_phase(
        settings,
        problem,
        algorithm,
        name="federated",
        last=max(last, longer),
        marks=at,
        keep=[*at[(len(at) - 1) // 2 :][:1], *([last] if longer > last else [])],
    )
    alone = federating.make(settings, problem.task, "local")
    return federated, federating.local_phase(settings, problem, alone)


def marks_of(last: int, number: int) -> list[int]:
    """So many rounds, evenly spread up to the last."""
    return sorted({max(1, last * i // number) for i in range(1, number + 1)})


def writing(writer: Writer) -> Callable:
    """What one client's model answers to prompts `[K, L]`, some of them at a time."""

    def write(base, adapter, prompts, counts, most: int):
        some = lambda i: writer.write(base, adapter, prompts[i], counts[i], most)
        return in_parts(some, jnp.arange(len(counts)), most=_WRITTEN_AT_ONCE)

    return jax.jit(write, static_argnums=4)


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
