"""TSV: task singular vectors, made orthogonal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Array
from potara_jax.merging import registry
from potara_jax.merging.combining import check_finite
from potara_jax.merging.interface import Merge, Place

_SPACES = ("core",)  # its bases are orthonormal: its singular values are the delta's


@registry.merge(
    "tsv",
    spaces=_SPACES,
    summary="singular vectors orthogonal across adapters (TSV-M)",
    reference="arXiv 2412.00081",
)
def tsv(*, scale: float = 1.0) -> Merge:
    """Task singular vectors, made orthogonal across adapters before they are summed.

    With the SVDs `theta_i = P_i S_i Q_i^T` side by side, `P = [P_1 ...]`, the result is
    `scale * polar(P) diag(n w_i S_i) polar(Q)^T`. No vector is left out: the ranks of
    adapters fit beside each other. TSV-M, Gargiulo et al. 2025 (arXiv 2412.00081).

    Where adapters share directions exactly, as with a frozen `a`, there are fewer
    directions than vectors, and the authors' code fills `polar(P)` with arbitrary
    ones. Here the result stays within the shared directions and has the same norm,
    that of `n w_i S_i`.
    """
    check_finite("scale", scale)
    return Merge("tsv", _summed, _SPACES, scale=scale, adds=True)


def _summed(values: Sequence[Array], weights: Sequence[Any], place: Place) -> Array:
    del place
    p, sigma, q = zip(*(algebra.thin_svd(x) for x in values), strict=True)
    left = algebra.polar(jnp.concatenate(p, -1))
    right = algebra.polar(jnp.concatenate(q, -2))
    sizes = [w * s for w, s in zip(weights, sigma, strict=True)]
    sizes = jnp.concatenate(sizes, -1)
    total = algebra.product(left * sizes[..., None, :], right)
    room = (sizes != 0).sum(-1) <= min(values[0].shape[-2:])
    return total * jnp.where(room, _ratio(sizes, total), 1)[..., None, None]


def _ratio(sizes: Array, total: Array) -> Array:
    """The norm of the singular values over that of the sum; one for a perfect sum."""
    is_, should = (jnp.sqrt(x) for x in ((total**2).sum((-2, -1)), (sizes**2).sum(-1)))
    return jnp.where(is_ > 0, should / jnp.where(is_ > 0, is_, 1), 1)
