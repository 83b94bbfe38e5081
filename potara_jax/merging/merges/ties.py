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

    Of every array the share `density` of largest magnitude is kept; the sign of an
    entry is that of the weighted sum; the entries of that sign are averaged with their
    weights (as in mergekit; the divisor is the weights that agree), times `scale`.
    Yadav et al. 2023 (arXiv 2306.01708).
    """
    check_share("density", density)
    check_finite("scale", scale)

    def combine(values: Sequence[Array], weights: Sequence[Any], place: Place) -> Array:
        del place
        trimmed = [_trim(x, density) for x in values]
        sign = jnp.where(weighted_sum(trimmed, weights) >= 0, 1.0, -1.0)
        pairs = zip(trimmed, weights, strict=True)
        agree = [(w * x * sign > 0) * w for x, w in pairs]
        total = sum(map(jnp.abs, agree))
        mean = weighted_sum(trimmed, agree) / jnp.where(total > 0, total, 1)
        return scale * mean

    return Merge("ties", combine, DENSE)


def _trim(x: Array, density: float) -> Array:
    """The entries of largest magnitude of every `[rows, columns]`; the rest zero."""
    size = x.shape[-2] * x.shape[-1]
    kept = max(1, round(density * size))
    if kept == size:
        return x
    flat = jnp.abs(x).reshape(*x.shape[:-2], size)
    threshold = jnp.sort(flat, -1)[..., size - kept, None, None]
    return jnp.where(jnp.abs(x) >= threshold, x, 0)
