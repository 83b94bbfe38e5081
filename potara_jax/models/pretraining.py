"""Supervised pre-training of a base."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from potara_jax.adapters.lora import Params

Array = jax.Array
Carry = Any  # parameters, and the optimiser's state
Step = Callable[[Carry, Array], tuple[Carry, Array]]
_REPORTS = 20
_TIMED = 5  # steps after the first, which compiles
_SECONDS_BETWEEN_SAVES = 10.0


class Progress(NamedTuple):
    """Pre-training after some steps.

    Attributes:
      done: the number of steps.
      carry: the parameters and the optimiser's state.
      losses: `[steps]`, of which the first `done` are known.
    """

    done: Array
    carry: Carry
    losses: Array


class Keeper(NamedTuple):
    """Keeps the progress of a pre-training that may be interrupted.

    Attributes:
      load: `load(like)`, what was saved, of the structure of `like`, or None.
      save: `save(progress)` keeps it in place of what was saved.
    """

    load: Callable[[Progress], Progress | None]
    save: Callable[[Progress], None]


class Listener(NamedTuple):
    """Hears of the steps.

    Attributes:
      on_step: `on_step(done, loss)`, from time to time.
      on_pace: `on_pace(done, seconds)`, once, after the first steps, with the seconds
        of one.
    """

    on_step: Callable[[int, float], None]
    on_pace: Callable[[int, float], None] = lambda done, seconds: None


def pretrain(
    loss: Callable[[Params, Any], Array],
    params: Params,
    examples: Any,
    key: Array,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    listener: Listener | None = None,
    keeper: Keeper | None = None,
) -> tuple[Params, Array]:
    """Train parameters with AdamW, whose rate warms up and then falls as a cosine.

    The warm-up takes a tenth of the steps; the rate ends at zero. Batches are drawn
    with replacement.

    Args:
      loss: `(params, batch) -> scalar`.
      params: initial parameters.
      examples: a pytree of arrays with examples on the first axis.
      key: draws the batches; consumed.
      steps: optimiser steps.
      batch_size: examples of a step.
      learning_rate: the largest learning rate.
      listener: hears of the steps. Default: all steps are one scan.
      keeper: keeps the progress of steps that are no scan; from what it has kept,
        training goes on to the same bytes.

    Returns:
      The trained parameters, and the losses `[steps]`.
    """
    size = len(jax.tree.leaves(examples)[0])
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(1, steps // 10), max(2, steps)
    )
    optimizer = optax.adamw(schedule, weight_decay=1e-2)

    def step(carry: Carry, key: Array) -> tuple[Carry, Array]:
        params, state = carry
        index = jax.random.randint(key, (batch_size,), 0, size)
        batch = jax.tree.map(lambda x: x[index], examples)
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    state = jax.jit(optimizer.init)(params)
    carry, keys = (params, state), jax.random.split(key, steps)
    if listener is None:
        (params, _), losses = jax.jit(partial(jax.lax.scan, step))(carry, keys)
        return params, jnp.asarray(losses)
    begin = Progress(jnp.int32(0), jax.tree.map(jnp.copy, carry), jnp.zeros(steps))
    progress = keeper.load(begin) if keeper else None
    return _step_by_step(
        jax.jit(step, donate_argnums=0), progress or begin, keys, listener, keeper
    )


def _step_by_step(
    step: Step,
    progress: Progress,
    keys: Array,
    listener: Listener,
    keeper: Keeper | None,
) -> tuple[Params, Array]:
    begin, carry = int(progress.done), progress.carry
    losses = list(progress.losses[:begin])
    started = saved = time.monotonic()
    for number, key in enumerate(keys[begin:], begin + 1):
        carry, loss = step(carry, key)
        losses.append(loss)
        if number == begin + 1:  # it compiles
            started = _now(loss)
        if number == begin + 1 + _TIMED:
            listener.on_pace(number, (_now(loss) - started) / _TIMED)
        if number % max(1, len(keys) // _REPORTS) == 0:
            listener.on_step(number, float(loss))
        if keeper and time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            known = jnp.zeros(len(keys)).at[:number].set(jnp.stack(losses))
            keeper.save(Progress(jnp.int32(number), carry, known))
            saved = time.monotonic()
    return carry[0], jnp.stack(losses) if losses else jnp.zeros(0)


def _now(computed: Array) -> float:
    """The time once a value is computed."""
    jax.block_until_ready(computed)
    return time.monotonic()
