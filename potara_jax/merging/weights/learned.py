"""Weights by gradient descent."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from potara_jax.adapters.lora import Array
from potara_jax.merging import registry
from potara_jax.merging.interface import Client, Estimator, Measured, Weight
from potara_jax.merging.likelihoods import Loss
from potara_jax.merging.segment import halves, segment_loss

_Carry = tuple[Weight, optax.OptState, Weight, Array]


@registry.weight(
    "learned",
    needs="loss",
    samples="heldout",
    passes=lambda work: float(work.steps),
    costly=True,
    summary="gradient descent on the samples, a weight a client or module",
    reference="arXiv 2310.02575",
)
def learned(
    loss: Loss, *, per: str = "client", steps: int = 25, learning_rate: float = 0.05
) -> Estimator:
    """Weights by gradient descent (Adam, from 1/2) on the samples, kept in [0, 1].

    The weights that had the least loss are returned. More steps than the default gained
    nothing in the study of the weights. AdaMerging, Yang et al. 2024 (arXiv
    2310.02575), with the loss of labelled samples.

    Args:
      loss: `(base, adapter, examples) -> [N]`.
      per: one weight a `client` or `module`.
      steps: of gradient descent.
      learning_rate: of Adam.
    """
    optimizer = optax.adam(learning_rate)

    def measure(client: Client) -> Measured:
        at = segment_loss(loss, client)
        start = halves(client, per)

        def step(carry: _Carry, _: None) -> tuple[_Carry, None]:
            weight, state, best, least = carry
            value, slope = jax.value_and_grad(at)(weight)
            best = _where(value < least, weight, best)
            updates, state = optimizer.update(slope, state)
            weight = _clipped(optax.apply_updates(weight, updates))
            return (weight, state, best, jnp.minimum(value, least)), None

        carry: Any = (start, optimizer.init(start), start, jnp.inf)
        (_, _, best, _), _ = jax.lax.scan(step, carry, length=steps)
        return Measured(best)

    return Estimator("learned", measure)


def _where(better: Array, new: Weight, old: Weight) -> Weight:
    return jax.tree.map(lambda x, y: jnp.where(better, x, y), new, old)


def _clipped(weight: Weight) -> Weight:
    return jax.tree.map(lambda x: jnp.clip(x, 0, 1), weight)
