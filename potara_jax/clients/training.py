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
from potara_jax.keys import subkey

Array = jax.Array
Objective = Callable[[Any, Batch], Array]


@dataclasses.dataclass(frozen=True)
class Train:
    """A client's training in a round: steps of an optimiser on its examples.

    `train(objective, params, pool, examples, key) -> (params, losses)` trains any
    parameters on `objective(params, batch) -> scalar` with a fresh optimiser. Batches
    are drawn by `batch_index`. `losses` `[S]`, float32, are each step's, and NaN for
    steps that the client does not take, see `run_steps`.
    """

    optimizer: optax.GradientTransformation
    steps: int
    batch_size: int

    def __call__(
        self,
        objective: Objective,
        params: Any,
        pool: Batch,
        examples: Ragged,
        key: Array,
    ) -> tuple[Any, Array]:
        """Train; see the class."""

        def step(carry: Any, row: Array) -> tuple[Any, Array]:
            params, state = carry
            loss, grads = jax.value_and_grad(objective)(params, take(pool, row))
            updates, state = self.optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        carry, rows = (params, self.optimizer.init(params)), self.batches(examples, key)
        (params, _), losses = run_steps(step, carry, rows, examples)
        return params, losses

    def batches(self, examples: Ragged, key: Array) -> Array:
        """Indices `[S, B]` into the pool; the same for every training with one key."""
        steps, size = self.steps, self.batch_size
        key = subkey(key, "batches")
        return batch_index(key, examples, steps=steps, batch_size=size)


def run_steps(
    step: Callable[[Any, Array], tuple[Any, Array]],
    carry: Any,
    rows: Array,
    examples: Ragged,
) -> tuple[Any, Array]:
    """`carry` after a client's steps, and their losses.

    A client takes the first `ceil(share * S)` steps; the losses `[S, ...]` of the
    others are NaN. Clients that are computed at once run for as long as the one of them
    with the most steps.

    Args:
      step: `step(carry, row) -> (carry, loss)`.
      carry: before the first step, such as parameters and the optimiser's state.
      rows: a batch's indices a step, `[S, B]`.
      examples: the client's.
    """
    if examples.share is None:
        return jax.lax.scan(step, carry, rows)
    shape = jax.eval_shape(step, carry, rows[0])[1]
    none = jnp.full((len(rows), *shape.shape), jnp.nan, shape.dtype)

    def take_step(number: Array, state: tuple[Any, Array]) -> tuple[Any, Array]:
        carry, losses = state
        carry, loss = step(carry, rows[number])
        return carry, losses.at[number].set(loss)

    last = jnp.ceil(examples.share * len(rows)).astype(jnp.int32)
    return jax.lax.fori_loop(0, last, take_step, (carry, none))


def batch_index(
    key: Array,
    examples: Ragged,
    *,
    steps: int,
    batch_size: int,
    first: Array | int = 0,
) -> Array:
    """Indices `[S, B]` into the pool: one shuffle of the client's examples, in a cycle.

    Every example is used equally often, to within one. Example `i`'s place in the
    shuffle comes from `fold_in(key, i)`, so padding changes nothing.

    Args:
      key: the shuffle's key, consumed.
      examples: one client's.
      steps: `S`.
      batch_size: `B`.
      first: the number of the first of these steps, where some came before.
    """
    place = jnp.arange(examples.index.shape[0])
    draw = lambda i: jax.random.uniform(jax.random.fold_in(key, i))
    order = jnp.argsort(jnp.where(place < examples.count, jax.vmap(draw)(place), 2.0))
    position = first * batch_size + jnp.arange(steps * batch_size)
    return examples.index[order[position % examples.count]].reshape(steps, batch_size)


def client_key(key: Array, client: Array, round_number: Array | int) -> Array:
    """A client's key in a round: from the run's key, the client and the round alone."""
    of_client = jax.random.fold_in(subkey(key, "clients"), client)
    return jax.random.fold_in(of_client, round_number)
