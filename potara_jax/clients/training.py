"""Local training: a client's steps as one scan.

Dimension letters: `S` steps, `B` batch, `N` examples (padded).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from potara_jax.data.federation import Batch, Ragged, take

Array = jax.Array
Objective = Callable[[Any, Batch], Array]


@dataclasses.dataclass(frozen=True)
class Train:
    """What a client does in a round: steps of an optimiser on batches of its examples.

    `train(objective, params, pool, examples, key) -> (params, losses)` trains any
    parameters on `objective(params, batch) -> scalar` with a fresh optimiser. Batches
    are drawn by `batch_index`. `losses` `[S]`, float32, are each step's, and NaN where
    the client did not come so far: it does the first `ceil(share * S)` steps.
    """

    optimizer: optax.GradientTransformation
    steps: int
    batch_size: int

    def __call__(self, objective: Objective, params, pool: Batch, examples, key):
        """Train; see the class."""
        index = self.batches(examples, key)
        done = done_steps(self.steps, examples)

        def step(carry, now):
            row, real = now
            params, state = carry
            loss, grads = jax.value_and_grad(objective)(params, take(pool, row))
            updates, state = self.optimizer.update(grads, state, params)
            stepped = optax.apply_updates(params, updates), state
            return keep_done(real, stepped, carry, loss)

        carry = params, self.optimizer.init(params)
        (params, _), losses = jax.lax.scan(step, carry, (index, done))
        return params, losses

    def batches(self, examples: Ragged, key: Array) -> Array:
        """Indices `[S, B]` into the pool."""
        steps, size = self.steps, self.batch_size
        return batch_index(key, examples, steps=steps, batch_size=size)


def done_steps(steps: int, examples: Ragged) -> Array | None:
    """Whether a client does each step, `[S]`; None where all clients do all."""
    if examples.share is None:
        return None
    return jnp.arange(steps) < jnp.ceil(examples.share * steps)


def keep_done(done: Array | None, new: Any, old: Any, losses: Array) -> tuple:
    """A step's result: `new`, or `old` with NaN losses where it is not done."""
    if done is None:
        return new, losses
    kept = jax.tree.map(lambda x, y: jnp.where(done, x, y), new, old)
    return kept, jnp.where(done, losses, jnp.nan)


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
