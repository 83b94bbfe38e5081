"""FedEx-LoRA: FedIT, and what its mean gets wrong goes into the base.

    W <- W + s R,    R = sum_k p_k a_k b_k - (sum_k p_k a_k) (sum_k p_k b_k)

(Singhal et al. 2024, arXiv 2410.09432). `R` is sent to all as factors of rank
`(K - 1) r`, for `K` clients that arrive (the paper's have rank `(K + 1) r`), or dense
where that is smaller.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter, Array
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated import factors
from potara_jax.federated.aggregation import weighted_mean
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.interface import Algorithm
from potara_jax.federated.needs import needed
from potara_jax.federated.registry import algorithm


@algorithm(
    "fedex",
    "Singhal et al. 2024, arXiv 2410.09432",
    "FedIT, with its error added to the base",
    differs="clients weigh by their examples, in the paper alike",
)
def fedex(task: Task, train: Train) -> Algorithm:
    """FedEx-LoRA."""
    add = needed(task.add, "FedEx-LoRA", "a way to add deltas to the base")

    def init(adapter, size):
        rows = jax.tree.map(lambda x: jnp.zeros((size.cohort, *x.shape)), adapter)
        nobody = jnp.zeros(size.cohort)
        return {
            "adapter": adapter,
            "deltas": factors.zero_deltas(adapter),
            "residual": _residual(rows, nobody),
            "kept": _rank(rows, nobody),
        }

    def aggregate(server, uploads, weights):
        residual = _residual(uploads, weights)
        return {
            "adapter": weighted_mean(uploads, weights),
            "deltas": factors.add_deltas(server["deltas"], factors.deltas(residual)),
            "residual": residual,
            "kept": _rank(uploads, weights),
        }

    return fedit(task, train)._replace(
        name="FedEx-LoRA",
        init=init,
        broadcast=lambda server, state: server["adapter"],
        aggregate=aggregate,
        sum_only=False,
        changes_base=True,
        announce=lambda server: factors.cheapest(server["residual"], server["kept"]),
        rebase=lambda base, server: add(base, server["deltas"]),
    )


def _residual(uploads: Adapter, weights: Array) -> Adapter:
    """`sum_k p_k (a_k - mean a) (b_k - b_j)`, stacked, for a client `j` that arrived.

    That is `R`, since the `p_k (a_k - mean a)` add up to zero.
    """
    one = jnp.argmax(weights)
    known = factors.factors(uploads)
    mean = weighted_mean(known, weights)
    centred = {
        path: {"a": e["a"] - mean[path]["a"], "b": e["b"] - e["b"][one]}
        for path, e in known.items()
    }
    return factors.stacked(centred, weights)


def _rank(uploads: Adapter, weights: Array) -> Array:
    """The rank of `R`: that of all clients that arrived but one."""
    others = jnp.maximum((weights > 0).sum() - 1, 0)
    return (others * factors.rank_of(uploads)).astype(jnp.int32)
