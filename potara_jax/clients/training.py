"""Local training: a client's steps as one scan.

Dimension letters: `S` steps, `B` batch, `N` examples (padded).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from potara_jax.data.federation import Batch, Ragged, take

Array = jax.Array
Objective = Callable[[Any, Batch], Array]
Train = Callable[[Objective, Any, Batch, Ragged, Array], tuple[Any, Array]]


def local_training(
    optimizer: optax.GradientTransformation, *, steps: int, batch_size: int
) -> Train:
    """A function that trains any parameters on one client's examples.

    The result is `train(objective, params, pool, examples, key) -> (params, losses)`:
    `steps` steps of a fresh `optimizer` on `objective(params, batch) -> scalar`, with
    batches drawn by `batch_index`; `losses` `[S]`, float32, of each step's batch.
    """

    def train(objective, params, pool, examples, key):
        index = batch_index(key, examples, steps=steps, batch_size=batch_size)

        def step(carry, row):
            params, state = carry
            loss, grads = jax.value_and_grad(objective)(params, take(pool, row))
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        carry = params, optimizer.init(params)
        (params, _), losses = jax.lax.scan(step, carry, index)
        return params, losses

    return train


def batch_index(key: Array, examples: Ragged, *, steps: int, batch_size: int) -> Array:
    """Indices `[S, B]` into the pool: one shuffle of the client's examples, in a cycle.

    Every example is used equally often, to within one. Example `i`'s place in the
    shuffle comes from `fold_in(key, i)`, so padding changes nothing.
    """
    place = jnp.arange(examples.index.shape[0])
    draw = lambda i: jax.random.uniform(jax.random.fold_in(key, i))
    order = jnp.argsort(jnp.where(place < examples.count, jax.vmap(draw)(place), 2.0))
    position = jnp.arange(steps * batch_size) % examples.count
    return examples.index[order[position]].reshape(steps, batch_size)


def client_key(key: Array, client: Array, round_number: Array | int) -> Array:
    """A client's key in a round: of the run's key, the client and the round alone."""
    return jax.random.fold_in(jax.random.fold_in(key, client), round_number)
