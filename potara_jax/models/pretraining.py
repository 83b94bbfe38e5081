"""Supervised pre-training of a base."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from potara_jax.adapters.lora import Params

Array = jax.Array
Carry = Any  # parameters, and the optimiser's state
Step = Callable[[Carry, Array], tuple[Carry, Array]]
_REPORTS = 20


def pretrain(
    loss: Callable[[Params, Any], Array],
    params: Params,
    examples: Any,
    key: Array,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    on_step: Callable[[int, float], None] | None = None,
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
      on_step: called from time to time with the number of steps done and the last loss.
        Default: all steps are one scan.

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

    carry, keys = (params, optimizer.init(params)), jax.random.split(key, steps)
    if on_step is None:
        (params, _), losses = jax.jit(partial(jax.lax.scan, step))(carry, keys)
        return params, jnp.asarray(losses)
    return _step_by_step(jax.jit(step, donate_argnums=0), carry, keys, on_step)


def _step_by_step(
    step: Step, carry: Carry, keys: Array, on_step: Callable[[int, float], None]
) -> tuple[Params, Array]:
    carry, losses = jax.tree.map(jnp.copy, carry), []
    for number, key in enumerate(keys, 1):
        carry, loss = step(carry, key)
        losses.append(loss)
        if number % max(1, len(keys) // _REPORTS) == 0:
            on_step(number, float(loss))
    return carry[0], jnp.stack(losses) if losses else jnp.zeros(0)
