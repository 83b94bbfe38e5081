"""Kronecker-factored Fisher information: what correlates within an array.

The diagonal forgets that the parameters of one matrix move together. Here every array's
Fisher is a Kronecker product, from the same per-sample scores and at the same cost.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Array
from potara_jax.merging.curvature import (
    Curvature,
    Scored,
    Scores,
    Tree,
    accumulate,
    geometry,
    mean_of,
)
from potara_jax.merging.likelihoods import Example


class _Sides(NamedTuple):
    rows: Tree
    columns: Tree


def kronecker(
    likelihood: Scored,
    federated: Tree,
    local: Tree,
    examples: Example,
    weight: Array,
    key: Array,
    *,
    chunk: int = 10,
) -> Curvature:
    """The Kronecker-factored Fisher of two models; arguments as in `curvature`.

    With a sample's score `S` of an array `[rows, columns]` its Fisher is taken to be
    `A x G`, of the factors

        A = E[S S^T] / sqrt(t),    G = E[S^T S] / sqrt(t),    t = tr E[S S^T]

    which is exact where the Fisher is a Kronecker product, and in the trace always. The
    leaves of the result are the eigenvalues of `A x G`, the products of both factors',
    descending; every damping and weight takes them as it takes a diagonal, except one
    weight a parameter, which eigenvalues do not have. One correlation a leaf.

    The form is K-FAC's (Martens and Grosse 2015, arXiv 1503.05671); factors of whole
    scores need no independence of activations and gradients (Morwani et al. 2024,
    arXiv 2406.17748). For `core` coordinates, which are small.
    """
    thetas = jax.tree.map(_as_matrix, (federated, local))
    shaped = lambda theta, example, k: likelihood(
        jax.tree.map(lambda x, own: x.reshape(own.shape), theta, federated), example, k
    )
    sides, inner = accumulate(
        _products, shaped, thetas, examples, weight, key, chunk=chunk
    )
    traces = [jax.tree.map(jnp.trace, side.rows) for side in sides]
    rho = jax.tree.map(_cosine, *traces, inner)
    fishers = [jax.tree.map(_eigenvalues, side.rows, side.columns) for side in sides]
    rho = _spread(rho, fishers[0])
    return Curvature(*fishers, rho, mean_of(fishers), *geometry(*thetas))


def _spread(rho, like) -> Tree:
    return jax.tree.map(lambda r, x: jnp.full_like(x, 1) * r, rho, like)


def _as_matrix(x) -> Array:
    return x.reshape(-1, x.shape[-1]) if x.ndim != 2 else x


def _products(federated: Scores, local: Scores):
    product = lambda how: lambda g: jnp.einsum(how, g, g, precision="highest")
    sides = [
        _Sides(
            jax.tree.map(product("qij,qkj->ik"), scores.rows),
            jax.tree.map(product("qij,qik->jk"), scores.rows),
        )
        for scores in (federated, local)
    ]
    inner = jax.tree.map(lambda f, own: (f * own).sum(), federated.rows, local.rows)
    return tuple(sides), inner


def _cosine(square_f, square_l, inner) -> Array:
    root = jnp.sqrt(square_f * square_l)
    return jnp.where(root > 0, jnp.clip(inner / jnp.where(root > 0, root, 1), 0, 1), 0)


def _eigenvalues(rows, columns) -> Array:
    """The eigenvalues of the Kronecker product, `[rows, columns]`."""
    of = lambda side: algebra.svd(side)[1]
    trace = jnp.trace(rows)
    return jnp.outer(of(rows), of(columns)) / jnp.where(trace > 0, trace, 1)
