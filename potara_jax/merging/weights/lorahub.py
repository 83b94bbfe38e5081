"""LoRAHub: free weights of the factors, without gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Array
from potara_jax.merging import registry, spaces
from potara_jax.merging.interface import Client, Estimator, Measured, Weight
from potara_jax.merging.likelihoods import Loss
from potara_jax.merging.segment import segment_loss

_EVALUATIONS = 40  # a forward pass each
_Carry = tuple[Array, Array, Array]


@registry.weight(
    "lorahub",
    needs="loss",
    samples="heldout",
    space="factor",
    passes=lambda work: _EVALUATIONS / 3,
    bounded=False,
    summary="free weights of the factors, without gradients",
    reference="arXiv 2307.13269",
)
def lorahub(
    loss: Loss,
    *,
    evaluations: int = _EVALUATIONS,
    bound: float = 1.5,
    penalty: float = 0.05,
) -> Estimator:
    """A free weight for each adapter's factors, by an evolution strategy on the loss.

    The weights start from zero. A weight multiplies both factors of its adapter, so
    that the delta is quadratic in it: merge in `factor` space. Huang et al. 2023 (arXiv
    2307.13269), with a (1 + 1) evolution strategy (one-fifth rule) in place of their
    NGOpt.

    Args:
      loss: `(base, adapter, examples) -> [N]`.
      evaluations: of the loss.
      bound: of the weights, which are within `+-bound`.
      penalty: on the loss, times the mean size of the weights.
    """

    def measure(client: Client) -> Measured:
        at = segment_loss(loss, client, "factor")
        arrays = spaces.plain(client.local)

        def of_arrays(weights: Array) -> tuple[Weight, Weight]:
            """Each adapter's weight for each of its arrays."""
            first, second = (
                {path: dict.fromkeys(entry, w) for path, entry in arrays.items()}
                for w in (weights[0], weights[1])
            )
            return first, second

        def cost(weights: Array) -> Array:
            return at(of_arrays(weights)) + penalty * jnp.abs(weights).mean()

        def step(carry: _Carry, key: Array) -> tuple[_Carry, None]:
            best, least, width = carry
            trial = best + width * jax.random.normal(key, (2,))
            trial = jnp.clip(trial, -bound, bound)
            value = cost(trial)
            better = value < least
            width = width * jnp.where(better, 1.5, 1.5**-0.25)
            best = jnp.where(better, trial, best)
            return (best, jnp.minimum(value, least), width), None

        start = jnp.zeros(2)
        keys = jax.random.split(client.key, evaluations - 1)
        first: Any = (start, cost(start), 0.5)
        carry, _ = jax.lax.scan(step, first, keys)
        return Measured(of_arrays(carry[0]))

    return Estimator("lorahub", measure)
