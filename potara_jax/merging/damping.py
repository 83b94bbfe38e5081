"""Damping: from Fisher information to posterior variance.

A `Damping` maps a client's `Curvature` and its number of training examples to the two
models' posterior variances, each a pytree like the coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Array
from potara_jax.merging.curvature import Curvature, mean_of

Tree = Any
Damping = Callable[[Curvature, Array], tuple[Tree, Tree]]


def laplace(tau: float) -> Damping:
    """Laplace posterior variance `1 / (N F + tau)`: `tau` is the prior precision."""

    def variances(curvature: Curvature, examples: Array) -> tuple[Tree, Tree]:
        return _inverted(curvature, lambda f: examples * f + tau)

    return variances


def evidence(scale: float = 1.0) -> Damping:
    """`laplace`, `tau` being `scale` times that of the highest marginal likelihood.

    One `tau` for both models, with `theta` their coordinates and `d` their number:

        log p(D) ~ d/2 log tau - 1/2 sum log(N F + tau) - tau/2 |theta|^2 + const

    It is the root of `sum N F / (N F + tau) = tau |theta|^2` (MacKay 1992), whose left
    side falls and whose right side rises with `tau`: bisection finds it.
    """

    def variances(curvature: Curvature, examples: Array) -> tuple[Tree, Tree]:
        tau = scale * evidence_precision(curvature, examples)
        return _inverted(curvature, lambda f: examples * f + tau)

    return variances


def evidence_precision(curvature: Curvature, examples: Array) -> Array:
    """The prior precision of the highest marginal likelihood; see `evidence`."""
    fishers = jax.tree.leaves([curvature.federated, curvature.local])

    def too_small(log_tau: Array) -> Array:
        tau = jnp.exp(log_tau)
        known = sum((examples * f / (examples * f + tau)).sum() for f in fishers)
        return known > tau * curvature.square

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        small = too_small(middle)
        return jnp.where(small, middle, low), jnp.where(small, high, middle)

    low, high = jax.lax.fori_loop(0, 50, halve, (jnp.float32(-40), jnp.float32(40)))
    return jnp.exp((low + high) / 2)


def relative(epsilon: float) -> Damping:
    """`1 / (F + d)` with one `d = epsilon * mean(F)` over both models.

    A `d` for each model would leave the traces as far apart as the means are.
    """

    def variances(curvature: Curvature, examples: Array) -> tuple[Tree, Tree]:
        del examples
        floor = jnp.where(curvature.mean > 0, epsilon * curvature.mean, 1.0)
        return _inverted(curvature, lambda f: f + floor)

    return variances


def quantile(q: float) -> Damping:
    """`1 / max(F, d)` with `d` the `q`-quantile of both models' positive entries."""

    def variances(curvature: Curvature, examples: Array) -> tuple[Tree, Tree]:
        del examples
        leaves = jax.tree.leaves([curvature.federated, curvature.local])
        both = jnp.concatenate([x.ravel() for x in leaves])
        floor = jnp.nanquantile(jnp.where(both > 0, both, jnp.nan), q)
        floor = jnp.where(jnp.isnan(floor), 1.0, floor)
        return _inverted(curvature, lambda f: jnp.maximum(f, floor))

    return variances


def harmonic(epsilon: float) -> Damping:
    """The harmonic bound on a module's trace, `n^2 / sum F`, with relative damping.

    By Jensen it is below `sum 1/F`, and finite unless the module's whole `F` is zero.
    """

    def variances(curvature: Curvature, examples: Array) -> tuple[Tree, Tree]:
        used = curvature.used or {}
        averaged = [
            {path: _flat(module, used.get(path)) for path, module in tree.items()}
            for tree in (curvature.federated, curvature.local)
        ]
        flat = curvature._replace(federated=averaged[0], local=averaged[1])
        return relative(epsilon)(flat, examples)

    return variances


def _inverted(
    curvature: Curvature, precision: Callable[[Array], Array]
) -> tuple[Tree, Tree]:
    def inverse(tree: Tree) -> Tree:
        return jax.tree.map(lambda f: 1 / precision(f), tree)

    return inverse(curvature.federated), inverse(curvature.local)


def _flat(module: Tree, used: Tree | None) -> Tree:
    mean = mean_of(module, used)
    return jax.tree.map(lambda x: jnp.full_like(x, mean), module)


DAMPINGS: dict[str, Callable[[float], Damping]] = {
    "laplace": laplace,
    "evidence": evidence,
    "relative": relative,
    "quantile": quantile,
    "harmonic": harmonic,
}
