"""Reductions over the cohort."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def weighted_mean(stacked: Any, weights: Array) -> Any:
    """`sum_c weights[c] * leaf[c]` of every leaf `[C, ...]`, in float32.

    `weights` `[C]` sum to one.
    """
    dot = lambda leaf: jnp.tensordot(weights, leaf, 1, precision="highest")
    return jax.tree.map(dot, stacked)


def all_finite(tree: Any) -> Array:
    """Whether a pytree's floating-point numbers are all finite; true where none is."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    checks = [jnp.isfinite(leaf).all() for leaf in floats]
    return jnp.stack(checks).all() if checks else jnp.array(True)


def select(condition: Array, chosen: Any, other: Any) -> Any:
    """`chosen` where a scalar condition holds, else `other`, leaf by leaf."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), chosen, other)
