"""Supervised pre-training of a base, as one scan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from potara_jax.data.federation import take

Array = jax.Array
_TIMES = 20


def pretrain(
    loss: Callable[[dict, Any], Array],
    params: dict,
    pool: Any,
    key: Array,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    told: Callable[[int, float], Any] | None = None,
) -> tuple[dict, Array]:
    """Parameters after `steps` steps of AdamW, and the losses `[steps]`.

    pool: examples, as a tree of arrays that have them on the first axis.
    loss: `(params, some of them) -> scalar`. The learning rate warms up over a tenth of
    the steps and falls to zero as a cosine. Batches are drawn with replacement from
    `key`.
    told: is called with the number of steps done and the last loss, now and then.
    """
    size = len(jax.tree.leaves(pool)[0])
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(1, steps // 10), max(2, steps)
    )
    optimizer = optax.adamw(schedule, weight_decay=1e-2)

    def step(carry, key):
        params, state = carry
        index = jax.random.randint(key, (batch_size,), 0, size)
        value, grads = jax.value_and_grad(loss)(params, take(pool, index))
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    carry, keys = (params, optimizer.init(params)), jax.random.split(key, steps)
    if told is None:
        (params, _), losses = jax.jit(partial(jax.lax.scan, step))(carry, keys)
        return params, jnp.asarray(losses)
    return _step_by_step(jax.jit(step, donate_argnums=0), carry, keys, told)


def _step_by_step(step, carry, keys, told) -> tuple[dict, Array]:
    carry, losses = jax.tree.map(jnp.copy, carry), []
    for number, key in enumerate(keys, 1):
        carry, loss = step(carry, key)
        losses.append(loss)
        if number % max(1, len(keys) // _TIMES) == 0:
            told(number, float(loss))
    return carry[0], jnp.stack(losses) if losses else jnp.zeros(0)
