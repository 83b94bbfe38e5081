"""FedRot-LoRA: clients rotate their factors to the server's (2026, arXiv 2602.23638).

`a R` and `R^T b` have the delta of `a` and `b` for any orthogonal `R`, but not the same
mean over clients. `R` aligns `a` with the received one in one round and `b` in the
next, softly: `(1 - strength) I + strength R*`, made orthogonal.
"""

from __future__ import annotations

import jax.numpy as jnp

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Array
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated import factors
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm


@algorithm(
    "fedrot", "2026, arXiv 2602.23638", "FedIT, with factors rotated before averaging"
)
def fedrot(task: Task, train: Train, *, strength: float = 0.5) -> Algorithm:
    """FedRot-LoRA; `strength` 0 is FedIT."""

    def client(shared, received, state, examples, key):
        objective = task.objective(shared.base)
        adapter, losses = train(objective, received, shared.pool, examples, key)
        by_a = shared.round % 2 == 0
        rotate = lambda e, reference: _rotated(e, reference, by_a, strength)
        turned = algebra.map_factors(
            rotate, factors.factors(adapter), factors.factors(received)
        )
        return Update(state, adapter | turned, losses, received)

    return fedit(task, train)._replace(name="FedRot-LoRA", client=client)


def _rotated(
    entry: dict[str, Array], reference: dict[str, Array], by_a: Array, strength: float
) -> dict[str, Array]:
    across = lambda x, y: algebra.product(jnp.swapaxes(x, -1, -2), y)
    by_b = algebra.product(entry["b"], jnp.swapaxes(reference["b"], -1, -2))
    best = _orthogonal(jnp.where(by_a, across(entry["a"], reference["a"]), by_b))
    soft = (1 - strength) * jnp.eye(best.shape[-1]) + strength * best
    rotation = _orthogonal(soft, proper=False)
    return {
        "a": algebra.product(entry["a"], rotation),
        "b": across(rotation, entry["b"]),
    }


def _orthogonal(matrix: Array, *, proper: bool = True) -> Array:
    """The nearest orthogonal matrix; `proper`: the nearest rotation."""
    u, _, v = algebra.svd(matrix)
    if proper:
        sign = jnp.sign(jnp.linalg.det(algebra.product(u, v)))
        flip = jnp.ones(u.shape[-1]).at[-1].set(0)
        u = u * (flip + (1 - flip) * sign[..., None])[..., None, :]
    return algebra.product(u, v)
