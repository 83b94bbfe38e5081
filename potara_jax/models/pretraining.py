"""Supervised pre-training of a base, as one scan."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def pretrain(
    apply: Callable[[dict, Array], Array],
    params: dict,
    inputs: Array,
    labels: Array,
    key: Array,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
) -> tuple[dict, Array]:
    """Parameters after `steps` steps of AdamW on cross-entropy, and losses `[steps]`.

    apply: `(params, inputs) -> logits`. The learning rate warms up over a tenth of the
    steps and falls to zero as a cosine. Batches are drawn with replacement from `key`.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(1, steps // 10), max(2, steps)
    )
    optimizer = optax.adamw(schedule, weight_decay=1e-2)

    def loss(params, index):
        logits = apply(params, inputs[index])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[index])
        return losses.mean()

    def step(carry, key):
        params, state = carry
        index = jax.random.randint(key, (batch_size,), 0, labels.shape[0])
        value, grads = jax.value_and_grad(loss)(params, index)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys))
    keys = jax.random.split(key, steps)
    (params, _), losses = run((params, optimizer.init(params)), keys)
    return params, jnp.asarray(losses)
