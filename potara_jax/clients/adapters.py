"""Many adapters on one frozen base, each on examples of its own.

Dimension letters: `C` adapters, `S` steps, `B` batch, `N` examples (padded).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from potara_jax import keys
from potara_jax.adapters import lora as lora_layers
from potara_jax.adapters.lora import Adapter, Array, Params
from potara_jax.clients.axis import AUTO, Layout, over_clients
from potara_jax.clients.fitting import jit_over_clients
from potara_jax.clients.mesh import by_client, everywhere, put, whole
from potara_jax.clients.model_task import ModelTask, check_task
from potara_jax.clients.task import Task
from potara_jax.clients.training import draw_steps, nth
from potara_jax.data.arrays import Examples, pooled
from potara_jax.data.federation import Batch, Ragged, pack, take

Report = Callable[[int, int, float], None]
_BLOCKS = 20  # reports of progress
_AS_MANY_AS_FIT = Layout(AUTO)


class LoraSettings(Protocol):
    """What an adapter is: its rank, its scale `alpha / rank`, and its modules.

    `targets`: patterns of adapted modules, see `lora.find_sites`. `whole`: paths of
    modules that are trained whole.
    """

    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def targets(self) -> Sequence[str]: ...
    @property
    def whole(self) -> Sequence[str]: ...


class _State(NamedTuple):
    """One adapter in training."""

    adapter: Adapter
    optimizer: Any


def train_adapters(
    task: ModelTask,
    base: Params,
    examples: Sequence[Examples],
    *,
    lora: LoraSettings,
    steps: int,
    key: Array,
    batch_size: int = 8,
    learning_rate: float | optax.Schedule = 5e-3,
    weight_decay: float = 1e-4,
    layout: Layout = _AS_MANY_AS_FIT,
    progress: bool | Report = True,
) -> tuple[Adapter, np.ndarray]:
    """Train one adapter on each of many data sets, all at once on one frozen base.

    AdamW on batches that cycle through one shuffle of an adapter's examples. All
    adapters start from the same factors, so that they can be merged. An adapter's
    batches depend on the key and its place in `examples` alone, not on the others.

    Args:
      task: the model and what is learned on it, see `classification` and `objective`.
      base: the model's parameters or variables.
      examples: for each adapter its inputs and labels: arrays, or pytrees of arrays,
        with a leading axis of examples that may differ in length.
      lora: rank, scale, and modules of the adapters.
      steps: `S`, the number of optimiser steps.
      key: the key of the factors and the shuffles, consumed.
      batch_size: `B`.
      learning_rate: of AdamW, constant or a schedule of the step.
      weight_decay: of AdamW.
      layout: how many adapters at once, and on which devices; default: as many as fit.
      progress: whether to show a progress bar (where rich is installed), or a function
        `(done, total, loss)` that is called a few times, with the mean loss of the last
        steps.

    Returns:
      The adapters, stacked to `[C, ...]`, and the losses `[C, S]`, float32. With a mesh
      over several hosts, each holds its devices' part of the adapters, and all losses.

    Raises:
      ValueError: where examples do not fit together, labels are no classes of the
        model, or settings do not fit it.
    """
    keys.check(key)
    _check_numbers(steps, batch_size, learning_rate, weight_decay)
    check_task(task)
    names = [f"data set {number}" for number in range(len(examples))]
    arrays, groups = pooled(examples, names=names)
    pool, clients = Batch(*arrays), pack(groups)
    sites = task.sites(take(pool, jnp.arange(1)), lora.targets)
    task.check(base, pool, groups, names)
    init_key, batch_key = jax.random.split(key)
    adapter = lora_layers.init(init_key, sites, rank=lora.rank)
    lora_layers.check_apart(sites, lora.whole)
    adapter |= lora_layers.trained_modules(base, lora.whole)
    optimizer = optax.adamw(learning_rate, weight_decay=weight_decay)
    size = -(-steps // _BLOCKS)
    advance = _advance(
        task.at(lora.alpha / lora.rank, sites),
        optimizer,
        steps=size,
        batch_size=batch_size,
        layout=layout,
    )
    state = _start(adapter, optimizer, len(groups))
    each = jax.vmap(lambda c: jax.random.fold_in(batch_key, c))(np.arange(len(groups)))
    placed = _placed(layout, (base, pool), (state, clients, each))
    state, losses = _train(advance, *placed, steps, size, progress)
    return state.adapter, losses


def _check_numbers(
    steps: int, batch_size: int, rate: float | optax.Schedule, decay: float
) -> None:
    if not all(isinstance(x, int) and x >= 1 for x in (steps, batch_size)):
        raise ValueError(
            f"steps is {steps} and batch_size {batch_size}: both must be whole "
            "numbers, at least 1"
        )
    if not (callable(rate) or 0 < rate < math.inf):
        raise ValueError(f"learning_rate is {rate}: it must be above 0, and finite")
    if not 0 <= decay < math.inf:
        raise ValueError(f"weight_decay is {decay}: it must be 0 or more, and finite")


def _start(
    adapter: Adapter, optimizer: optax.GradientTransformation, clients: int
) -> _State:
    one = _State(adapter, optimizer.init(adapter))
    return jax.tree.map(lambda x: jnp.repeat(x[None], clients, 0), one)


def _placed(layout: Layout, shared: Any, clients: Any) -> tuple[Any, Any]:
    """What all adapters share on every device, and the adapters over the devices."""
    if layout.mesh is None:
        return shared, clients
    split = by_client(layout.mesh, len(clients[1].count))
    return everywhere(layout.mesh, shared), put(clients, split)


def _train(
    advance: Callable[..., tuple[_State, Array]],
    shared: tuple[Params, Batch],
    clients: tuple[_State, Ragged, Array],
    steps: int,
    size: int,
    progress: bool | Report,
) -> tuple[_State, np.ndarray]:
    """All steps, in blocks of one size, so that one program does them all."""
    state, examples, keys = clients
    losses: list[Array] = []
    with _reporting(progress) as report:
        for first in range(0, steps, size):
            last = min(first + size, steps)
            limits = np.int32(first), np.int32(last - first)
            state, block = advance(shared, state, examples, keys, *limits)
            losses.append(block[:, : last - first])
            if report:
                report(last, steps, float(losses[-1].mean()))
    return state, np.concatenate([whole(block) for block in losses], axis=1)


def _advance(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int,
    layout: Layout,
) -> Callable[..., tuple[_State, Array]]:
    """`advance(shared, states, examples, keys, first, number) -> (states, losses)`.

    Takes `number` of `steps` steps, at most all of them, from step `first` on; the
    losses `[C, steps]` of the rest are NaN. The states are donated.
    """

    def block(
        shared: tuple[Params, Batch],
        state: _State,
        examples: Ragged,
        key: Array,
        first: Array,
        number: Array,
    ) -> tuple[_State, Array]:
        base, pool = shared
        sizes: Any = {"steps": steps, "batch_size": batch_size, "first": first}
        draws = draw_steps(key, examples, **sizes)
        slope = jax.value_and_grad(task.objective(base))

        def step(i: Array, carry: tuple[_State, Array]) -> tuple[_State, Array]:
            (adapter, optimizer_state), losses = carry
            loss, grads = slope(adapter, take(pool, nth(draws, i)))
            updates, fresh = optimizer.update(grads, optimizer_state, adapter)
            updated: Any = optax.apply_updates(adapter, updates)
            return _State(updated, fresh), losses.at[i].set(loss)

        losses = jnp.full(steps, jnp.nan, jnp.float32)
        return jax.lax.fori_loop(0, number, step, (state, losses))

    axes = (None, 0, 0, 0, None, None)
    return jit_over_clients(
        lambda layout: over_clients(block, in_axes=axes, layout=layout),
        layout,
        lambda *args: len(args[3]),
        donate_argnums=1,
    )


# --- Progress ------------------------------------------------------------------------


@contextmanager
def _reporting(progress: bool | Report) -> Generator[Report | None]:
    if callable(progress) or not progress:
        yield progress or None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield None
        return
    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield None
        return
    with Progress(console=console) as bar:
        row = bar.add_task("adapters")
        yield lambda done, total, loss: bar.update(
            row, completed=done, total=total, description=f"loss {loss:.4g}"
        )
