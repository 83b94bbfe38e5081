"""FedEx-LoRA: FedIT, and what its mean gets wrong goes into the base.

    W <- W + s R,    R = sum_k p_k a_k b_k - (sum_k p_k a_k) (sum_k p_k b_k)

(Singhal et al. 2024, arXiv 2410.09432). `R` is sent to all as factors of rank
`(K + 1) r`, or dense where that is smaller.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from potara_jax.adapters import algebra
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
)
def fedex(task: Task, train: Train) -> Algorithm:
    """FedEx-LoRA."""
    add = needed(task.add, "FedEx-LoRA", "a way to add deltas to the base")

    def init(adapter, size):
        rows = jax.tree.map(lambda x: jnp.zeros((size.cohort, *x.shape)), adapter)
        nothing = jax.tree.map(jnp.zeros_like, adapter)
        residual = _residual(rows, nothing, jnp.zeros(size.cohort))
        deltas = factors.zero_deltas(adapter)
        return {"adapter": adapter, "deltas": deltas, "residual": residual}

    def aggregate(server, uploads, weights):
        mean = weighted_mean(uploads, weights)
        residual = _residual(uploads, mean, weights)
        dense = {path: _dense(value) for path, value in residual.items()}
        deltas = factors.add_deltas(server["deltas"], dense)
        return {"adapter": mean, "deltas": deltas, "residual": residual}

    return fedit(task, train)._replace(
        name="FedEx-LoRA",
        init=init,
        broadcast=lambda server, state: server["adapter"],
        aggregate=aggregate,
        sum_only=False,
        changes_base=True,
        announce=lambda server: server["residual"],
        rebase=lambda base, server: add(base, server["deltas"]),
    )


def _residual(uploads: Adapter, mean: Adapter, weights: Array) -> dict[str, Any]:
    """Of every module with factors, the smaller of factors and dense."""
    stack = factors.stacked(uploads, weights)

    def smaller(path, entry):
        minus = {"a": -mean[path]["a"], "b": mean[path]["b"]}
        both = algebra.concatenate(entry, minus)
        rows, columns = both["a"].shape[-2], both["b"].shape[-1]
        rank = both["a"].shape[-1]
        return both if rank * (rows + columns) < rows * columns else _dense(both)

    return {path: smaller(path, entry) for path, entry in stack.items()}


def _dense(value: Any) -> Array:
    return algebra.delta(value) if isinstance(value, dict) else value
