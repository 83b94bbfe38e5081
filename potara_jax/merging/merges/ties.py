"""TIES: trim, elect signs, merge what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from potara_jax.adapters.lora import Array
from potara_jax.merging import registry
from potara_jax.merging.combining import check_finite, check_share, weighted_sum
from potara_jax.merging.interface import DENSE, Merge, Place


@registry.merge(
    "ties",
    spaces=DENSE,
    summary="trim, elect signs, average what agrees; KnOTS-TIES in knots",
    reference="arXiv 2306.01708",
    variants=[("ties (knots)", "knots")],
)
def ties(*, density: float = 0.2, scale: float = 1.0) -> Merge:
    """Trim, elect signs, and average what agrees (TIES).

    Of every array of `n` entries, the `int(density n)` of largest magnitude are kept,
    as in PEFT and mergekit, but at least one; the sign of an entry is that of the
    weighted sum; the entries of that sign are averaged with their weights. Only ratios
    of weights matter. Yadav et al. 2023 (arXiv 2306.01708).

    In `core` and `knots`, `n` counts the directions that some adapter uses. The average
    is over `sum |w_i|` of the entries that agree: mergekit's is over `sum w_i`, which
    is the same but for negative weights, where it amplifies; PEFT's weights do not
    elect, and its average is over the number of entries.

    Args:
      density: the share of entries that is kept.
      scale: of the merged delta.
    """
    check_share("density", density)
    check_finite("scale", scale)

    def combine(values: Sequence[Array], weights: Sequence[Any], place: Place) -> Array:
        trimmed = [_trim(x, density, place.used) for x in values]
        sign = jnp.where(weighted_sum(trimmed, weights) >= 0, 1.0, -1.0)
        pairs = zip(trimmed, weights, strict=True)
        agree = [(w * x * sign > 0) * w for x, w in pairs]
        total = sum(map(jnp.abs, agree))
        return weighted_sum(trimmed, agree) / jnp.where(total > 0, total, 1)

    return Merge("ties", combine, DENSE, scale=scale, relative=True)


def _trim(x: Array, density: float, used: Array | None) -> Array:
    """The entries of largest magnitude of every `[rows, columns]`; the rest zero."""
    size = x.shape[-2] * x.shape[-1]
    ordered = jnp.sort(jnp.abs(x).reshape(*x.shape[:-2], size), -1)
    place = size - _kept(size, density, used)
    place = jnp.broadcast_to(place, ordered.shape[:-1])[..., None]
    threshold = jnp.take_along_axis(ordered, place, -1)[..., None]
    return jnp.where(jnp.abs(x) >= threshold, x, 0)


def _kept(size: int, density: float, used: Array | None) -> Any:
    """How many of an array's entries are kept, at least one."""
    of_all = max(1, int(density * size))
    if used is None:
        return of_all
    count = used.sum((-2, -1))
    of_used = jnp.maximum(1, jnp.floor(density * count).astype(int))
    return jnp.where(count == size, of_all, of_used)
