"""RegMean: least squares of the outputs on the clients' inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Array
from potara_jax.merging import registry
from potara_jax.merging.combining import weighted_sum
from potara_jax.merging.interface import Merge, Place

_SPACES = ("knots",)  # the inputs stay themselves
_EPSILON = 1e-8
_RIDGE = 1e-4  # of a mean diagonal element


@registry.merge(
    "regmean",
    spaces=_SPACES,
    needs="grams",
    summary="least squares of the outputs on the samples' inputs",
    reference="arXiv 2212.09849",
)
def regmean(
    grams: Sequence[Mapping[str, Array]], *, off_diagonal: float = 0.95
) -> Merge:
    """The delta whose outputs are nearest to every adapter's on the inputs it has seen.

        delta = (sum_i w_i G_i)^-1 sum_i w_i G_i delta_i,    G_i = X_i^T X_i

    Where there are no inputs, the result is the weighted mean. The deltas need not be
    formed: only their rows are mixed. Jin et al. 2023 (arXiv 2212.09849).

    Args:
      grams: for every adapter, `{path: [D, D]}` of the inputs of every adapted module.
      off_diagonal: what the off-diagonal elements are multiplied with (0.95 for CLIP).
    """

    def combine(values: Sequence[Array], weights: Sequence[Any], place: Place) -> Array:
        shrunk = [_shrunk(gram[place.path], off_diagonal) for gram in grams]
        weighted = [w * gram for w, gram in zip(weights, shrunk, strict=True)]
        total, size = sum(weighted), weighted[0].shape[-1]
        ridge = _RIDGE * jnp.trace(total) / size + _EPSILON
        pairs = zip(weighted, values, strict=True)
        towards = sum(algebra.product(gram, x) for gram, x in pairs)
        mean = weighted_sum(values, weights) / sum(weights)
        return algebra.solve(total + ridge * jnp.eye(size), towards + ridge * mean)

    return Merge("regmean", combine, _SPACES, relative=True)


def _shrunk(gram: Array, off_diagonal: float) -> Array:
    eye = jnp.eye(gram.shape[-1])
    return gram * (eye + (1 - eye) * off_diagonal)
