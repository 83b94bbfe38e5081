"""FedProx: FedIT whose clients are pulled to what they received (Li et al. 2020).

The objective gets `mu / 2 |w - w_t|^2` (arXiv 1812.06127, eq. 2).
"""

from __future__ import annotations

from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.factors import squared_distance
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm


@algorithm(
    "fedprox",
    "Li et al. 2020, arXiv 1812.06127",
    "FedIT with a pull towards the server's model",
)
def fedprox(task: Task, train: Train, *, mu: float = 0.01) -> Algorithm:
    """FedProx; `mu` 0 is FedIT."""

    def client(shared, received, state, examples, key):
        loss = task.objective(shared.base)

        def objective(adapter, batch):
            pull = squared_distance(adapter, received)
            return loss(adapter, batch) + mu / 2 * pull

        adapter, losses = train(objective, received, shared.pool, examples, key)
        return Update(state, adapter, losses, received)

    return fedit(task, train)._replace(name="FedProx", client=client)
