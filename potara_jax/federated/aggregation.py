"""Reductions over the cohort."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def weighted_mean(stacked: Any, weights: Array) -> Any:
    """`sum_c weights[c] * leaf[c]` of every leaf `[C, ...]`.

    `weights` `[C]` sum to one. Summed in float32, given in the leaf's own dtype.
    """

    def mean(leaf):
        leaf = jnp.asarray(leaf)
        total = jnp.tensordot(weights, leaf.astype(jnp.float32), 1, precision="highest")
        return total.astype(leaf.dtype)

    return jax.tree.map(mean, stacked)


def all_finite(tree: Any) -> Array:
    """Whether a pytree's floating-point numbers are all finite; true where none is."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    checks = [jnp.isfinite(leaf).all() for leaf in floats]
    return jnp.stack(checks).all() if checks else jnp.array(True)


def select(condition: Array, chosen: Any, other: Any) -> Any:
    """`chosen` where a scalar condition holds, else `other`, leaf by leaf."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), chosen, other)
