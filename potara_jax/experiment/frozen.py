"""What the frozen first layers of a model compute, once for every example.

Layers before the first one that is adapted read the same inputs in every step, round,
merge and evaluation. What they make of the pool's examples takes the place of the
examples, and the clients' task becomes that of the other layers. Results change by
rounding alone.

Dimension letters: `P` examples of the pool, `B` batch.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from potara_jax import memory
from potara_jax.adapters.lora import Params
from potara_jax.clients.mesh import everywhere
from potara_jax.clients.task import Task
from potara_jax.data.federation import Batch
from potara_jax.data.stored import Stored, in_file
from potara_jax.evaluation import metrics
from potara_jax.experiment import federating
from potara_jax.experiment.checks import Refused
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Problem, Split
from potara_jax.experiment.problems import bases

# The share of the memory, or of the free disk, that `auto` fills, and the numbers that
# the first layers hand on in one forward pass, at most.
_SHARE, _MAX_NUMBERS, _MAX_EXAMPLES = 0.3, 2**22, 128
_PLACES = {
    "device": "of the device's memory",
    "host": "of the host's memory",
    "disk": "of disk",
}
_SLOW = 30  # seconds, of which the user is told


def kept(
    experiment: Experiment,
    problem: Problem,
    log: Callable[[str], None],
    folder: Path | None = None,
) -> Problem:
    """The problem of the layers that change, on what the layers before them compute.

    The problem stays as it is if no layer is frozen, if `compute.frozen` is
    `recompute`, or if it is `auto` and there is no room.

    Args:
      experiment: its `compute`, and its devices, which all keep everything.
      problem: with the split of its model, if it has one.
      log: receives a line on what is kept, or why nothing is.
      folder: of the file, if it is kept on disk; None: that of temporary files.

    Returns:
      The problem.

    Raises:
      Refused: `compute.frozen` is a place that several devices cannot read from.
    """
    split, choice = problem.split, experiment.compute.frozen
    if split is None or not split.layers or choice == "recompute":
        return problem
    pools = {id(f.pool): f.pool for f in problem.federations.values()}
    needed = sum(_size(problem.base, split, pool.inputs) for pool in pools.values())
    frozen, size = f"{split.layers} of {split.depth} layers", f"{needed / 1e9:.2g} GB"
    mesh = federating.layout(experiment).mesh
    _check_place(choice, mesh)
    place = _place(needed, folder, mesh) if choice == "auto" else choice
    if place is None:
        log(
            f"the first {frozen} are frozen and recomputed in every step: to keep what "
            f"they compute would take {size} (compute.frozen)"
        )
        return problem
    log(
        f"the first {frozen} are frozen: what they compute is kept, in {size} "
        f"{_PLACES[place]} (compute.frozen)"
    )
    write = {"device": _on_device, "host": _on_host, "disk": _on_disk(folder)}[place]
    made = {
        n: pool._replace(inputs=write(problem.base, split, pool.inputs, log))
        for n, pool in pools.items()
    }
    return _on_kept(problem, split, pools, made, mesh)


def _check_place(choice: str, mesh: Mesh | None) -> None:
    """Raise `Refused` for a place that several devices cannot read from."""
    if mesh is not None and choice in ("host", "disk"):
        expected = "device, recompute or auto on several devices"
        raise Refused(f"compute.frozen is {choice}: it must be {expected}")


def _place(needed: int, folder: Path | None, mesh: Mesh | None) -> str | None:
    """Where so many bytes are kept by default, or None if nowhere.

    On a disk only if the host is the device: how fast an accelerator would read from
    there was not measured.
    """
    if needed <= _SHARE * memory.of_device():
        return "device"
    on_host = mesh is None and jax.default_backend() == "cpu"
    return "disk" if on_host and needed <= _SHARE * free_space(folder) else None


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
    before = next(iter(pools.values()))
    number = _at_once(_shapes(problem.base, split, before.inputs))
    if split.task.sequences:  # whose answers count too
        number = metrics.examples_at_once(split.task, before)
    task = _measured(split.task, number)
    return problem._replace(task=task, federations=federations, split=None)


def _measured(task: Task, at_once: int) -> Task:
    """The task, and all that are made of it, measured on some examples at once."""
    again = task.again
    changed = again and (lambda change: _measured(again(change), at_once))
    return task._replace(at_once=at_once, again=changed)


def free_space(folder: Path | None) -> int:
    """Bytes that are free on the disk of a folder; None: of temporary files."""
    existing = folder or Path(tempfile.gettempdir())
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


# --- What the first layers compute ---------------------------------------------------


def _shapes(base: Params, split: Split, inputs: Any) -> Any:
    """The shapes of what is kept of a pool, `[P, ...]`."""
    return jax.eval_shape(split.below, base, inputs)


def _size(base: Params, split: Split, inputs: Any) -> int:
    leaves = jax.tree.leaves(_shapes(base, split, inputs))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


class _Parts(NamedTuple):
    """A pool in equal parts, which bound memory.

    Its last part begins earlier if it would be too short.
    """

    size: int
    firsts: tuple[int, ...]


def _parts(shapes: Any) -> _Parts:
    """The parts of what is kept, `[P, ...]`."""
    examples = len(jax.tree.leaves(shapes)[0])
    number = -(-examples // _at_once(shapes))
    size = -(-examples // number)
    return _Parts(size, tuple(min(n * size, examples - size) for n in range(number)))


def _timed(firsts: Sequence[int], log: Callable[[str], None]) -> Iterator[int]:
    """The first example of every part.

    A line says how long all take, if that is long. The first one is compiled.
    """
    began = time.monotonic()
    for number, first in enumerate(firsts):
        yield first
        if number == 1:
            seconds = (len(firsts) - 2) * (time.monotonic() - began)
            if seconds > _SLOW:
                log(f"to compute it takes {bases.duration(seconds)} from here")
        began = time.monotonic()


def _on_device(
    base: Params, split: Split, inputs: Any, log: Callable[[str], None]
) -> Any:
    """What the first layers compute of a pool, in the device's memory."""
    shapes = _shapes(base, split, inputs)
    size, firsts = _parts(shapes)
    outputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    add = _adder(split, size)
    for first in _timed(firsts, log):
        outputs = add(outputs, base, inputs, jnp.int32(first))
        if first <= size:  # the time of the first two is taken
            jax.block_until_ready(outputs)
    return outputs


def _on_host(
    base: Params, split: Split, inputs: Any, log: Callable[[str], None]
) -> Any:
    """What the first layers compute of a pool, in the host's memory."""
    return _outside(np.zeros, base, split, inputs, log)


def _on_disk(folder: Path | None) -> Callable[..., Any]:
    """Likewise, in a file of the folder."""
    return partial(_outside, partial(in_file, folder=folder))


def _outside(
    make: Callable[..., np.ndarray],
    base: Params,
    split: Split,
    inputs: Any,
    log: Callable[[str], None],
) -> Any:
    """What the first layers compute of a pool, in arrays `make(shape, dtype)`."""
    shapes = _shapes(base, split, inputs)
    size, firsts = _parts(shapes)
    outputs = jax.tree.map(lambda x: make(x.shape, x.dtype), shapes)
    below = jax.jit(split.below)
    for first in _timed(firsts, log):
        place = slice(first, first + size)
        part = below(base, jax.tree.map(itemgetter(place), inputs))
        for kept, new in zip(*map(jax.tree.leaves, (outputs, part)), strict=True):
            kept[place] = new
    return jax.tree.map(Stored, outputs)


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
