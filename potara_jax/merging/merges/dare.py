"""DARE: drop at random and rescale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Array
from potara_jax.merging import registry
from potara_jax.merging.combining import check_finite, check_share, weighted_sum
from potara_jax.merging.interface import DENSE, Merge, Place


@registry.merge(
    "dare",
    spaces=DENSE,
    summary="drop entries at random, rescale, sum",
    reference="arXiv 2311.03099",
)
def dare(*, density: float = 0.5, draws: int = 1, scale: float = 1.0) -> Merge:
    """Drop entries at random, rescale the rest by `1 / density`, and sum (DARE).

    The expectation is `linear()`; an entry's variance is `x^2 (1 - density) / density`
    a draw, and the mean over several `draws` divides it by their number.
    Yu et al. 2024 (arXiv 2311.03099).

    Args:
      density: the share of entries that is kept.
      draws: the number of masks, over which the mean is taken.
      scale: of the merged delta.
    """
    check_share("density", density)
    check_finite("scale", scale)
    if draws < 1:
        raise ValueError(f"draws is {draws}: it must be 1 or more")

    def combine(values: Sequence[Array], weights: Sequence[Any], place: Place) -> Array:
        assert place.key is not None, "dare draws at random: it needs a key"
        first_key = place.key

        def draw(key: Array) -> Array:
            keys = jax.random.split(key, len(values))
            dropped = [_drop(k, x, density) for k, x in zip(keys, values, strict=True)]
            return weighted_sum(dropped, weights)

        def add(i: Array, total: Array) -> Array:
            return total + draw(jax.random.fold_in(first_key, i))

        start = jnp.zeros_like(values[0])
        return 1 / draws * jax.lax.fori_loop(0, draws, add, start)

    return Merge("dare", combine, DENSE, random=True, scale=scale)


def _drop(key: Array, x: Array, density: float) -> Array:
    return jnp.where(jax.random.bernoulli(key, density, x.shape), x / density, 0)
