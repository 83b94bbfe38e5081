"""Local training alone: nothing travels.

Started from the initial factors it is the local phase of Potara and the Local-only
baseline; started from a federated adapter it is local fine-tuning.
"""

from __future__ import annotations

from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm


@algorithm("local", "-", "every client trains alone")
def local_only(task: Task, train: Train) -> Algorithm:
    """Every client trains an adapter of its own, from the one it is given."""

    def client(shared, received, adapter, examples, key):
        del received
        objective = task.objective(shared.base)
        adapter, losses = train(objective, adapter, shared.pool, examples, key)
        return Update(adapter, (), losses, ())

    return Algorithm(
        name="local",
        init=lambda adapter, size: (),
        init_client=lambda adapter, client, key: adapter,
        broadcast=lambda server, state: (),
        client=client,
        aggregate=lambda server, uploads, weights: server,
        personalise=lambda shared, received, state, examples: state,
        personal=True,
        sum_only=True,  # nothing is uploaded
    )
