"""Try the user's merges and merge weights on shapes, before anything is trained.

The library's are covered by its tests, and tracing them takes a while.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from potara_jax import merging
from potara_jax.adapters.lora import Adapter, is_factors
from potara_jax.data.federation import Federation
from potara_jax.experiment import label_prior
from potara_jax.experiment.context import heldout_of
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.merges import combine_program, estimator
from potara_jax.experiment.methods import (
    Method,
    Weighing,
    check_possible,
    merged_methods,
)
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.programs import Programs
from potara_jax.merging import Measured, registry

Entry = registry.MergeEntry | registry.WeightEntry


def check_methods(experiment: Experiment, problem: Problem) -> None:
    """Trace the merged rows whose weight or merge is the user's.

    Args:
      experiment: with its settings.
      problem: what is learned.

    Raises:
      ValueError: the task does not provide what a selected row needs; or a weight or a
        merge fails, or returns anything but weights or adapters. The message names it
        and its file.
    """
    check_possible(experiment, problem.task)
    label_prior.check(experiment, problem)
    all_rows = merged_methods(experiment, problem.task)
    methods = [m for m in all_rows if any(_file(entry) for entry in _entries(m))]
    if not methods:
        return
    programs, shapes = Programs(experiment, problem), _Shapes.of(problem)
    weights = {
        weighing: _weight(programs, weighing, shapes)
        for weighing in dict.fromkeys(method.weighing for method in methods)
    }
    for method in methods:
        _check_merge(programs, method, shapes, weights[method.weighing])


def _entries(method: Method) -> tuple[registry.WeightEntry, registry.MergeEntry]:
    """The weight and the merge of a row."""
    weight = registry.weights()[method.weighing.weight]
    return weight, registry.merges()[method.combination.merge]


class _Shapes(NamedTuple):
    """The arguments of a program over clients, as shapes."""

    base: Any
    federated: Any
    local: Any
    samples: Any
    counts: Any
    key: Any

    @classmethod
    def of(cls, problem: Problem) -> _Shapes:
        """The shapes of a problem's cells, which are all the same."""
        federation = next(iter(problem.federations.values()))
        key = jax.eval_shape(lambda: jax.random.key(0))
        adapters = jax.eval_shape(
            lambda key: _adapters(problem, federation, key), jax.random.key(0)
        )
        samples = jax.eval_shape(heldout_of, federation)
        counts = federation.train.count
        return cls(problem.base, adapters, adapters, samples, counts, key)


def _adapters(problem: Problem, federation: Federation, key: jax.Array) -> Adapter:
    keys = jax.random.split(key, len(federation.train.count))
    return jax.vmap(problem.adapter)(keys)


def _weight(programs: Programs, weighing: Weighing, shapes: _Shapes) -> Any:
    """The shapes of a weight; raises `ValueError` if it returns no `Measured`."""
    entry = registry.weights()[weighing.weight]

    def trace() -> Any:
        program = merging.weigh(estimator(programs, weighing))
        return jax.eval_shape(program, *shapes)

    measured = _tried("weight", entry, trace)
    if not isinstance(measured, Measured):
        given = "None" if measured is None else "a bare value"
        raise ValueError(
            f"{_name('weight', entry)} gives {given}: return Measured(weight)"
        )
    return measured.weight


def _check_merge(
    programs: Programs, method: Method, shapes: _Shapes, weight: Any
) -> None:
    """Raise `ValueError` if a row's models differ in shape from the adapters."""
    of_weight, of_merge = _entries(method)
    # What "linear" cannot merge is no weight.
    kind = "weight" if method.combination.merge == "linear" else "merge"
    entry = of_weight if kind == "weight" else of_merge

    def trace() -> Any:
        program = combine_program(programs.task, method.combination)
        return jax.eval_shape(program, *shapes, weight)

    merged = _tried(kind, entry, trace)
    for path, expected in shapes.federated.items():
        if _sides(merged[path]) != _sides(expected):
            raise ValueError(
                f"{_name(kind, entry)} gives '{path}' the shape {_sides(merged[path])}"
                f", not {_sides(expected)}"
            )


def _sides(entry: Mapping[str, Any]) -> Any:
    """The sides of a delta with the axes before them, or a whole module's shapes."""
    if is_factors(dict(entry)):
        return (*entry["a"].shape[:-1], entry["b"].shape[-1])
    return {name: jnp.shape(x) for name, x in entry.items()}


# --- Messages ------------------------------------------------------------------------


def _tried(kind: str, entry: Entry, trace: Callable[[], Any]) -> Any:
    """A trace's result; raises `ValueError` with the user's line if it fails."""
    try:
        return trace()
    except Exception as error:
        raise ValueError(
            f"{_name(kind, entry)} fails on this task: {_reason(error, _file(entry))}"
        ) from error


def _name(kind: str, entry: Entry) -> str:
    file = _file(entry)
    return f"the {kind} '{entry.name}'" + (f" of {file}" if file else "")


def _file(entry: Entry) -> str | None:
    """The file that defines a user's merge or weight."""
    packaged = entry.make.__module__.startswith("potara_jax.")
    return None if packaged else inspect.getsourcefile(entry.make) or "a notebook"


def _reason(error: Exception, file: str | None) -> str:
    """An error in one line, with the last line of the file that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    place = f"line {lines[-1]} of {Path(file).name}: " if file and lines else ""
    text = " ".join(str(error).split())
    return f"{place}{type(error).__name__}: {text[:200]}"
