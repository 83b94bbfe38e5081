"""Kronecker-factored Fisher information: correlations within an array.

The diagonal ignores that the parameters of one matrix move together. Here every array's
Fisher is a Kronecker product, from the same per-sample scores and at the same cost.
"""

from __future__ import annotations

from functools import partial
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
    used: Tree | None = None,
) -> Curvature:
    """The Kronecker-factored Fisher of two models.

    With a sample's score `S` of an array `[rows, columns]` its Fisher is taken to be
    `A x G`, of the factors

        A = E[S S^T] / sqrt(t),    G = E[S^T S] / sqrt(t),    t = tr E[S S^T]

    which is exact where the Fisher is a Kronecker product; the trace is always exact.
    The leaves of the result are the eigenvalues of `A x G`, the products of both
    factors', descending. Every damping and weight takes them as it takes a diagonal,
    except one weight a parameter, which eigenvalues do not have. One correlation a
    leaf.

    The form is K-FAC's (Martens and Grosse 2015, arXiv 1503.05671); factors of whole
    scores need no independence of activations and gradients (Morwani et al. 2024,
    arXiv 2406.17748). For `core` coordinates, which are small.

    Args:
      likelihood: `(theta, example, key) -> (log_p [Q], weight [Q])`.
      federated: coordinates `theta` of the federated model.
      local: coordinates of the local one, of the same structure.
      examples: a pytree with a leading axis of `N` samples.
      weight: `[N]`, of every sample, see `curvature`.
      key: consumed; sample `i` uses `fold_in(key, i)` for both models.
      chunk: samples whose scores are held at once.
      used: booleans like `federated`, see `Curvature`.
    """
    thetas = jax.tree.map(_as_matrix, (federated, local))

    def of_matrices(theta: Tree, example: Example, key: Array) -> tuple[Array, Array]:
        shaped = jax.tree.map(lambda x, like: x.reshape(like.shape), theta, federated)
        return likelihood(shaped, example, key)

    sides, inner = accumulate(
        _products, of_matrices, thetas, examples, weight, key, chunk=chunk
    )
    traces = [jax.tree.map(jnp.trace, side.rows) for side in sides]
    rho = jax.tree.map(_cosine, *traces, inner)
    fishers = [jax.tree.map(_eigenvalues, side.rows, side.columns) for side in sides]
    rho = _spread(rho, fishers[0])
    if used is not None:
        used = jax.tree.map(lambda x: _used_eigenvalues(_as_matrix(x)), used)
    mean = mean_of(fishers, None if used is None else (used, used))
    first, second = fishers
    return Curvature(first, second, rho, mean, *geometry(*thetas), used)


def _spread(rho: Tree, like: Tree) -> Tree:
    return jax.tree.map(lambda r, x: jnp.full_like(x, 1) * r, rho, like)


def _as_matrix(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1]) if x.ndim != 2 else x


def _products(federated: Scores, local: Scores) -> tuple[tuple[_Sides, _Sides], Tree]:
    """Both models' `E[S S^T]` and `E[S^T S]`, and their scores' inner products."""
    inner = jax.tree.map(lambda f, other: (f * other).sum(), federated.rows, local.rows)
    return (_sides(federated), _sides(local)), inner


def _sides(scores: Scores) -> _Sides:
    def product(equation: str) -> Tree:
        square = partial(jnp.einsum, equation, precision="highest")
        return jax.tree.map(lambda g: square(g, g), scores.rows)

    return _Sides(product("qij,qkj->ik"), product("qij,qik->jk"))


def _cosine(square_f: Array, square_l: Array, inner: Array) -> Array:
    root = jnp.sqrt(square_f * square_l)
    return jnp.where(root > 0, jnp.clip(inner / jnp.where(root > 0, root, 1), 0, 1), 0)


def _used_eigenvalues(used: Array) -> Array:
    """Which eigenvalues can differ from zero: the largest, as many as are used."""
    rows, columns = (jnp.sort(used.any(axis), descending=True) for axis in (1, 0))
    return rows[:, None] & columns


def _eigenvalues(rows: Array, columns: Array) -> Array:
    """The eigenvalues of the Kronecker product, `[rows, columns]`."""
    of_rows, of_columns = (algebra.svd(side)[1] for side in (rows, columns))
    trace = jnp.trace(rows)
    return jnp.outer(of_rows, of_columns) / jnp.where(trace > 0, trace, 1)
