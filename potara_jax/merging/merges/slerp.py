"""Spherical interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from potara_jax.adapters.lora import Array
from potara_jax.merging import registry
from potara_jax.merging.combining import certainly
from potara_jax.merging.interface import DENSE, Merge, Place


@registry.merge(
    "slerp",
    spaces=DENSE,
    summary="interpolate two adapters on the sphere",
    reference="Shoemake 1985",
)
def slerp() -> Merge:
    """Spherical interpolation of two adapters, array by array (Shoemake 1985).

        sin((1 - t) W) / sin W x + sin(t W) / sin W y,    t = w_2 / (w_1 + w_2)

    with `W` the angle between `x` and `y`; linear where they are parallel (cosine above
    0.9995, as in mergekit). Merging any other number of adapters is a `ValueError`.
    """
    return Merge("slerp", _interpolated, DENSE, relative=True)


def _interpolated(
    values: Sequence[Array], weights: Sequence[Any], place: Place
) -> Array:
    del place
    if len(values) != 2:
        raise ValueError(f"'slerp' merges two adapters, not {len(values)}")
    first, second = values
    if certainly(sum(weights) == 0):
        raise ValueError("'slerp' divides by the sum of the weights, which is 0")
    t = weights[1] / (weights[0] + weights[1])
    cosine = _cosine(first, second)
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    parallel = jnp.abs(cosine) > 0.9995
    sine = jnp.where(parallel, 1.0, jnp.sin(angle))
    one = jnp.where(parallel, 1 - t, jnp.sin((1 - t) * angle) / sine)
    two = jnp.where(parallel, t, jnp.sin(t * angle) / sine)
    return one * first + two * second


def _cosine(first: Array, second: Array) -> Array:
    """The cosine of two arrays' last two axes, `[..., 1, 1]`, at any scale."""
    first, second = _scaled(first), _scaled(second)
    length = jnp.sqrt(_total(first**2) * _total(second**2))
    return _total(first * second) / jnp.where(length > 0, length, 1)


def _scaled(x: Array) -> Array:
    """An array over its largest magnitude."""
    size = jnp.abs(x).max((-2, -1), keepdims=True)
    return x / jnp.where(size > 0, size, 1)


def _total(x: Array) -> Array:
    return x.sum((-2, -1), keepdims=True)
