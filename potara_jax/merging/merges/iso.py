"""Iso: a sum with equal singular values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Array
from potara_jax.merging import registry
from potara_jax.merging.combining import check_finite, weighted_sum
from potara_jax.merging.interface import Merge, Place

_SPACES = ("core",)  # its bases are orthonormal: its singular values are the delta's


@registry.merge(
    "iso",
    spaces=_SPACES,
    summary="sum with equal singular values (Iso-C, non-zero subspace)",
    reference="arXiv 2502.04959",
)
def iso(*, scale: float = 1.0) -> Merge:
    """The sum of the task vectors with all its singular values made equal.

    To their mean over the directions that are used: the mean over all `min(D, K)`
    values would be taken over zeros, and fill the null space. Iso-C, Marczak et al.
    2025 (arXiv 2502.04959), restricted to the non-zero subspace.
    """
    check_finite("scale", scale)

    def combine(values: Sequence[Array], weights: Sequence[Any], place: Place) -> Array:
        del place
        u, sigma, v = algebra.thin_svd(weighted_sum(values, weights))
        used = sigma > 0
        count = jnp.maximum(used.sum(-1, keepdims=True), 1)
        mean = sigma.sum(-1, keepdims=True) / count
        return algebra.product(u * (used * mean)[..., None, :], v)

    return Merge("iso", combine, _SPACES, scale=scale, adds=True)
