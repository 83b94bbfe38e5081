"""LoRA-FAIR: the mean `b` is corrected to the mean delta (Bian et al. 2025).

    b <- mean b + argmin_x  S(sum_k p_k a_k b_k, mean a (mean b + x)) + penalty |x|^2

(arXiv 2411.14961). `S` is one minus the cosine, as in the paper, and the server takes
gradient steps; with the squared Frobenius distance instead there is a closed form of
`R x R` matrices, which also corrects the delta's size.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Array
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated import factors
from potara_jax.federated.aggregation import weighted_mean
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.interface import Algorithm
from potara_jax.federated.registry import algorithm


@algorithm(
    "lora_fair",
    "Bian et al. 2025, arXiv 2411.14961",
    "FedIT, with b corrected for the mean delta",
    differs="the correction's norm is squared in its penalty",
)
def lora_fair(
    task: Task,
    train: Train,
    *,
    penalty: float = 0.01,
    distance: Literal["frobenius", "cosine"] = "cosine",
    steps: int = 100,
    learning_rate: float = 0.01,
) -> Algorithm:
    """LoRA-FAIR.

    Args:
      task: what the clients learn.
      train: a client's local steps.
      penalty: of the correction; infinite, it is FedIT. For `frobenius` it is times the
        mean eigenvalue of `a^T a`.
      distance: between the corrected delta and the mean one.
      steps: of the cosine's gradient descent.
      learning_rate: of the cosine's gradient descent.
    """

    def aggregate(server, uploads, weights):
        mean = weighted_mean(uploads, weights)
        stack = factors.stacked(uploads, weights)

        def correct(entry, mean):
            if distance == "frobenius":
                return _closed(entry, mean, penalty)
            return _descended(entry, mean, penalty, steps, learning_rate)

        corrected = algebra.map_factors(correct, stack, factors.factors(mean))
        return mean | corrected

    return fedit(task, train)._replace(
        name="LoRA-FAIR", aggregate=aggregate, sum_only=False
    )


def _parts(
    stack: dict[str, Array], mean: dict[str, Array]
) -> tuple[Array, Array, Array]:
    """`a^T M`, `a^T a` and its mean eigenvalue; `M` is the stack's delta, unformed."""
    transposed = jnp.swapaxes(mean["a"], -1, -2)
    target = algebra.product(algebra.product(transposed, stack["a"]), stack["b"])
    gram = algebra.product(transposed, mean["a"])
    rank = gram.shape[-1]
    return target, gram, jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None] / rank


def _closed(
    stack: dict[str, Array], mean: dict[str, Array], penalty: float
) -> dict[str, Array]:
    target, gram, size = _parts(stack, mean)
    error = target - algebra.product(gram, mean["b"])
    ridge = gram + penalty * size * jnp.eye(gram.shape[-1])
    return mean | {"b": mean["b"] + algebra.solve(ridge, error)}


def _descended(
    stack: dict[str, Array],
    mean: dict[str, Array],
    penalty: float,
    steps: int,
    learning_rate: float,
) -> dict[str, Array]:
    target, gram, _ = _parts(stack, mean)
    size = algebra.norm(stack)

    def objective(x):
        b = mean["b"] + x
        inner = (target * b).sum((-1, -2))
        square = (algebra.product(gram, b) * b).sum((-1, -2))
        cosine = inner / jnp.sqrt(square * size**2 + 1e-20)
        return (1 - cosine + penalty * (x**2).sum((-1, -2))).sum()

    step = lambda _, x: x - learning_rate * jax.grad(objective)(x)
    x = jax.lax.fori_loop(0, steps, step, jnp.zeros_like(mean["b"]))
    return mean | {"b": mean["b"] + x}
