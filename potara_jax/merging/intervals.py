"""How sure a merge weight is."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Array
from potara_jax.merging.interface import Client, Estimator, Weight


def bootstrap(
    estimator: Estimator, *, replicates: int = 200, level: float = 0.9
) -> Callable[[Client], tuple[Weight, Weight]]:
    """A function from a client to the bootstrap interval `(low, high)` of its weight.

    Samples are drawn with replacement; gradients, losses and whatever else does not
    depend on how often a sample is drawn are computed once. Efron 1979.

    Args:
      estimator: of the weight.
      replicates: the number of bootstrap samples.
      level: the share of replicates in the interval.

    Raises:
      ValueError: the estimator weighs clients together.
    """
    if estimator.decide is not None:
        raise ValueError(f"'{estimator.name}' weighs clients together: no interval")

    def interval(client: Client) -> tuple[Weight, Weight]:
        draw_key, key = jax.random.split(client.key)
        counts = _resampled(draw_key, client.weight, replicates)

        def again(weight: Array) -> Weight:
            return estimator.measure(client._replace(weight=weight, key=key)).weight

        weights = jax.vmap(again)(counts)
        tail = (1 - level) / 2
        return _quantile(weights, tail), _quantile(weights, 1 - tail)

    return interval


def _quantile(weights: Weight, q: float) -> Weight:
    return jax.tree.map(lambda w: jnp.quantile(w, q, axis=0), weights)


def _resampled(key: Array, weight: Array, replicates: int) -> Array:
    """How often each sample is drawn, `[replicates, N]`: as many as are real."""
    size, real = weight.shape[0], weight > 0
    count, first = real.sum(), jnp.argsort(~real)  # a stable sort: the real ones first
    uniform = jax.random.uniform(key, (replicates, size))
    place = jnp.minimum((uniform * count).astype(int), count - 1)
    drawn = (jnp.arange(size) < count).astype(jnp.float32)

    def tally(index: Array) -> Array:
        return jnp.zeros(size).at[index].add(drawn)

    return jax.vmap(tally)(first[place])
