"""FedRPCA: what clients have in common is averaged, what sets them apart amplified.

The clients' updates of a factor, one a column, are split into a low-rank and a sparse
part by robust PCA (2025, arXiv 2506.01194):

    min |L|_* + lambda |S|_1,  L + S = M,     update <- mean L + boost * mean S
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Array, is_factors
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.aggregation import weighted_mean
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.interface import Algorithm
from potara_jax.federated.registry import algorithm


@algorithm(
    "fedrpca",
    "2025, arXiv 2506.01194",
    "FedIT, with the sparse part of updates amplified",
    differs="amplifies by a constant, which the paper adapts",
)
def fedrpca(
    task: Task, train: Train, *, boost: float = 2.0, iterations: int = 30
) -> Algorithm:
    """FedRPCA; `boost` 1 is FedIT up to the split's tolerance."""

    def aggregate(server, uploads, weights):
        number = (weights > 0).sum()

        def leaf(old, new):
            change = (new - old) * (weights > 0).reshape(-1, *[1] * old.ndim)
            columns = change.reshape(len(weights), -1).T
            low, sparse = robust_pca(columns, iterations=iterations, columns=number)
            return old + ((low + boost * sparse) @ weights).reshape(old.shape)

        amplified = {
            path: jax.tree.map(leaf, server[path], entry)
            for path, entry in uploads.items()
            if is_factors(entry)
        }
        return weighted_mean(uploads, weights) | amplified

    return fedit(task, train)._replace(
        name="FedRPCA", aggregate=aggregate, sum_only=False
    )


def robust_pca(
    matrix: Array, *, iterations: int, columns: Array | int
) -> tuple[Array, Array]:
    """`(L, S)` of principal component pursuit (Candes et al. 2011), inexact ALM.

    Args:
      matrix: `[N, C]`.
      iterations: of the alternating updates.
      columns: the number of columns that count; the others are zero, and change
        nothing.
    """
    shrink = lambda x, by: jnp.sign(x) * jnp.maximum(jnp.abs(x) - by, 0)
    share = 1 / jnp.sqrt(jnp.maximum(len(matrix), columns))
    total = jnp.abs(matrix).sum()
    penalty = len(matrix) * columns / (4 * jnp.where(total > 0, total, 1))

    def step(_, carry):
        _, sparse, dual = carry
        u, sigma, v = algebra.svd(matrix - sparse + dual / penalty)
        low = algebra.product(u * shrink(sigma, 1 / penalty), v)
        sparse = shrink(matrix - low + dual / penalty, share / penalty)
        return low, sparse, dual + penalty * (matrix - low - sparse)

    nothing = jnp.zeros_like(matrix)
    low, _, _ = jax.lax.fori_loop(0, iterations, step, (nothing,) * 3)
    return low, matrix - low
