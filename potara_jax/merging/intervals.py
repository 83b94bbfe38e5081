"""How sure a merge weight is."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Array
from potara_jax.keys import subkey
from potara_jax.merging.interface import Client, Estimator, Measured, Weight


def bootstrap(
    estimator: Estimator, *, replicates: int = 200, level: float = 0.9
) -> Estimator:
    """The same weight, with the interval of its bootstrap (Efron 1979).

    Samples are drawn with replacement; gradients, losses and whatever else does not
    depend on how often a sample is drawn are computed once, for the weight itself too.

    Args:
      estimator: of the weight.
      replicates: the number of bootstrap samples.
      level: the share of replicates in the interval.

    Raises:
      ValueError: the estimator weighs clients together.
    """
    if estimator.decide is not None:
        raise ValueError(f"'{estimator.name}' weighs clients together: no interval")

    def measure(client: Client) -> Measured:
        drawn = _resampled(subkey(client.key, "bootstrap"), client.weight, replicates)
        counts = jnp.concatenate([client.weight[None], drawn])
        of_counts = lambda weight: estimator.measure(client._replace(weight=weight))
        each = jax.vmap(of_counts)(counts)
        itself = jax.tree.map(lambda x: x[0], each)
        again = jax.tree.map(lambda x: x[1:], each.weight)
        tail = (1 - level) / 2
        interval = _quantile(again, tail), _quantile(again, 1 - tail)
        return itself._replace(interval=interval)

    return Estimator(estimator.name, measure)


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
