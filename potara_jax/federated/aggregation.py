"""Reductions over the cohort, and what they need of pytrees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def weighted_mean(stacked: Any, weights: Array) -> Any:
    """`sum_c weights[c] * leaf[c]` of every leaf `[c, ...]`.

    Sums in float32, and keeps the leaf's dtype.

    Args:
      stacked: a pytree with a leading axis of clients.
      weights: `[c]`, which sum to one.

    Examples:
      >>> uploads = {"b": jnp.array([[0.0], [4.0]])}  # of two clients
      >>> weighted_mean(uploads, jnp.array([0.75, 0.25]))["b"].tolist()
      [1.0]
    """

    def mean(leaf: Array) -> Array:
        leaf = jnp.asarray(leaf)
        total = jnp.tensordot(weights, leaf.astype(jnp.float32), 1, precision="highest")
        return total.astype(leaf.dtype)

    return jax.tree.map(mean, stacked)


def is_float(x: Array) -> bool:
    """Whether an array holds floating-point numbers."""
    return jnp.issubdtype(x.dtype, jnp.floating)


def all_finite(tree: Any) -> Array:
    """Whether all floats of a pytree are finite; true if it has none."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]
    checks = [jnp.isfinite(leaf).all() for leaf in floats]
    return jnp.stack(checks).all() if checks else jnp.array(True)


def select(condition: Array, chosen: Any, other: Any) -> Any:
    """`chosen` if a scalar condition holds, else `other`, leaf by leaf."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), chosen, other)
