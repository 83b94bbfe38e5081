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
    """
    check_finite("scale", scale)

    def combine(values: Sequence[Array], weights: Sequence[Any], place: Place) -> Array:
        del place
        p, sigma, q = zip(*(algebra.thin_svd(x) for x in values), strict=True)
        left = algebra.polar(jnp.concatenate(p, -1))
        right = algebra.polar(jnp.concatenate(q, -2))
        n = len(values)
        weighted = [n * w * s for w, s in zip(weights, sigma, strict=True)]
        return scale * algebra.product(
            left * jnp.concatenate(weighted, -1)[..., None, :], right
        )

    return Merge("tsv", combine, _SPACES)
