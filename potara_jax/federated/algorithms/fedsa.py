"""FedSA-LoRA: `a` is shared, `b` is each client's own (Guo et al. 2024).

Both are trained, `a` alone is sent and averaged (arXiv 2410.01463). The head, where
one is trained, stays with the client. A client that was never trained has `b` = 0.
"""

from __future__ import annotations

from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.aggregation import weighted_mean
from potara_jax.federated.factors import all_but_a, join, only_a
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm


@algorithm("fedsa", "Guo et al. 2024, arXiv 2410.01463", "a is shared, b is private")
def fedsa(task: Task, train: Train) -> Algorithm:
    """FedSA-LoRA."""

    def client(shared, received, private, examples, key):
        objective, start = task.objective(shared.base), join(received, private)
        adapter, losses = train(objective, start, shared.pool, examples, key)
        return Update(all_but_a(adapter), only_a(adapter), losses, received)

    return Algorithm(
        name="FedSA-LoRA",
        init=lambda adapter, size: only_a(adapter),
        init_client=lambda adapter, client, key: all_but_a(adapter),
        broadcast=lambda server, state: server,
        client=client,
        aggregate=lambda server, uploads, weights: weighted_mean(uploads, weights),
        personalise=lambda shared, received, private, examples: join(received, private),
        personal=True,
        sum_only=True,
    )
