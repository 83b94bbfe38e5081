"""What the frozen first layers of a model compute, once for every example.

Layers before the first one that is adapted read the same inputs in every step, round,
merge and evaluation. What they make of the pool's examples takes the place of the
examples, and the clients' task becomes that of the other layers. Results change by
rounding alone.

Dimension letters: `P` examples of the pool, `B` batch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from potara_jax.adapters.lora import Params
from potara_jax.clients.mesh import everywhere
from potara_jax.clients.task import Task
from potara_jax.data.federation import Batch
from potara_jax.evaluation import metrics
from potara_jax.experiment import federating
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Problem, Split
from potara_jax.experiment.problems import bases

# The share of the memory that `auto` fills, and the numbers that the first layers hand
# on in one forward pass, at most.
_SHARE, _MAX_NUMBERS, _MAX_EXAMPLES = 0.3, 2**22, 128
_SLOW = 30  # seconds, of which the user is told


def kept(
    experiment: Experiment, problem: Problem, log: Callable[[str], None]
) -> Problem:
    """The problem of the layers that change, on what the layers before them compute.

    The problem stays as it is if no layer is frozen, if `compute.frozen` is
    `recompute`, or if it is `auto` and the memory is too small.

    Args:
      experiment: its `compute`, and its devices, which all keep everything.
      problem: with the split of its model, if it has one.
      log: receives a line on what is kept, or why nothing is.

    Returns:
      The problem.
    """
    split, choice = problem.split, experiment.compute.frozen
    if split is None or not split.layers or choice == "recompute":
        return problem
    pools = {id(f.pool): f.pool for f in problem.federations.values()}
    needed = sum(_size(problem.base, split, pool.inputs) for pool in pools.values())
    frozen, size = f"{split.layers} of {split.depth} layers", f"{needed / 1e9:.2g} GB"
    if choice == "auto" and needed > _SHARE * memory():
        log(
            f"the first {frozen} are frozen and recomputed in every step: to keep what "
            f"they compute would take {size} (compute.frozen)"
        )
        return problem
    log(
        f"the first {frozen} are frozen: what they compute is kept, in {size} "
        "(compute.frozen)"
    )
    made = {n: _computed(problem.base, split, pool, log) for n, pool in pools.items()}
    return _on_kept(problem, split, pools, made, federating.layout(experiment).mesh)


def _on_kept(
    problem: Problem,
    split: Split,
    pools: Mapping[int, Batch],
    made: Mapping[int, Batch],
    mesh: Mesh | None,
) -> Problem:
    """The problem with `made` in place of its pools, and the task that reads it."""
    if mesh is not None:
        made = {name: everywhere(mesh, pool) for name, pool in made.items()}
    federations = {
        cell: federation._replace(pool=made[id(federation.pool)])
        for cell, federation in problem.federations.items()
    }
    before, after = (next(iter(each.values())) for each in (pools, made))
    number = _at_once(after.inputs)
    if split.task.sequences:  # whose answers count too
        number = metrics.examples_at_once(split.task, before)
    task = _measured(split.task, number)
    return problem._replace(task=task, federations=federations, split=None)


def _measured(task: Task, at_once: int) -> Task:
    """The task, and all that are made of it, measured on some examples at once."""
    again = task.again
    changed = again and (lambda change: _measured(again(change), at_once))
    return task._replace(at_once=at_once, again=changed)


def memory() -> int:
    """Bytes of the device's memory, or of the host's if that is the device."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# --- What the first layers compute ---------------------------------------------------


def _shapes(base: Params, split: Split, inputs: Any) -> Any:
    """The shapes of what is kept of a pool, `[P, ...]`."""
    return jax.eval_shape(split.below, base, inputs)


def _size(base: Params, split: Split, inputs: Any) -> int:
    leaves = jax.tree.leaves(_shapes(base, split, inputs))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _computed(
    base: Params, split: Split, pool: Batch, log: Callable[[str], None]
) -> Batch:
    """The pool with what the first layers compute as inputs.

    Computed in equal parts, in place, to bound memory. The last part begins earlier if
    it would be too short. A line says how long it takes, if that is long.
    """
    shapes = _shapes(base, split, pool.inputs)
    examples = len(jax.tree.leaves(shapes)[0])
    parts = -(-examples // _at_once(shapes))
    size = -(-examples // parts)
    add, inputs = _adder(split, size), pool.inputs
    outputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    for number in range(parts):
        began, first = time.monotonic(), min(number * size, examples - size)
        outputs = add(outputs, base, inputs, jnp.int32(first))
        if number < 2:
            jax.block_until_ready(outputs)
            seconds = (parts - 2) * (time.monotonic() - began)
            if number and seconds > _SLOW:  # the first part was compiled
                log(f"to compute it takes {bases.duration(seconds)} from here")
    return pool._replace(inputs=outputs)


def _adder(split: Split, size: int) -> Callable[..., Any]:
    """`add(outputs, base, inputs, first)`: `outputs` with those of `size` examples."""

    @partial(jax.jit, donate_argnums=0)
    def add(outputs: Any, base: Params, inputs: Any, first: jax.Array) -> Any:
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, first, size)
        put = lambda all_, x: jax.lax.dynamic_update_slice_in_dim(all_, x, first, 0)
        part = split.below(base, jax.tree.map(cut, inputs))
        return jax.tree.map(put, outputs, part)

    return add


def _at_once(outputs: Any) -> int:
    """Examples of one forward pass, from what layers hand on, `[P, ...]`."""
    numbers = sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(outputs))
    return max(1, min(_MAX_EXAMPLES, _MAX_NUMBERS // numbers))
