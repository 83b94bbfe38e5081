"""Local training: a client's steps as one scan.

Dimension letters: `S` steps, `B` batch, `N` examples (padded).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from potara_jax.data.federation import Batch, Draws, Ragged, take
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

        def step(carry: Any, draw: Draws) -> tuple[Any, Array]:
            params, state = carry
            loss, grads = jax.value_and_grad(objective)(params, take(pool, draw))
            updates, state = self.optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        carry = params, self.optimizer.init(params)
        draws = self.batches(examples, key)
        (params, _), losses = run_steps(step, carry, draws, examples)
        return params, losses

    def batches(self, examples: Ragged, key: Array) -> Draws:
        """What `S` steps draw; the same for every training with one key."""
        return draw_steps(key, examples, steps=self.steps, batch_size=self.batch_size)


def draw_steps(
    key: Array,
    examples: Ragged,
    *,
    steps: int,
    batch_size: int,
    first: Array | int = 0,
) -> Draws:
    """What steps draw; step `i`'s own key comes from `fold_in(key, i)`.

    Args:
      key: a client's in a round; may be used for its other purposes too.
      examples: one client's.
      steps: `S`.
      batch_size: `B`.
      first: the number of the first of these steps, where some came before.
    """
    sizes: Any = {"steps": steps, "batch_size": batch_size, "first": first}
    of_step = partial(jax.random.fold_in, subkey(key, "steps"))
    return Draws(
        batch_index(subkey(key, "batches"), examples, **sizes),
        jax.vmap(of_step)(first + jnp.arange(steps)),
    )


def run_steps(
    step: Callable[[Any, Draws], tuple[Any, Array]],
    carry: Any,
    draws: Draws,
    examples: Ragged,
) -> tuple[Any, Array]:
    """`carry` after a client's steps, and their losses.

    A client takes the first `ceil(share * S)` steps; the losses `[S, ...]` of the
    others are NaN. Clients that are computed at once run for as long as the one of them
    with the most steps.

    Args:
      step: `step(carry, draw) -> (carry, loss)`.
      carry: before the first step, such as parameters and the optimiser's state.
      draws: what each step draws, with a leading axis of `S` steps.
      examples: the client's.
    """
    if examples.share is None:
        return jax.lax.scan(step, carry, draws)
    steps, shape = len(draws.index), jax.eval_shape(step, carry, nth(draws, 0))[1]
    none = jnp.full((steps, *shape.shape), jnp.nan, shape.dtype)

    def take_step(number: Array, state: tuple[Any, Array]) -> tuple[Any, Array]:
        carry, losses = state
        carry, loss = step(carry, nth(draws, number))
        return carry, losses.at[number].set(loss)

    last = jnp.ceil(examples.share * steps).astype(jnp.int32)
    return jax.lax.fori_loop(0, last, take_step, (carry, none))


def nth(draws: Draws, number: Array | int) -> Draws:
    """What one of the steps draws."""
    return jax.tree.map(lambda x: x[number], draws)


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
