"""FedIT: federated averaging of the LoRA factors (Zhang et al. 2023, arXiv 2305.05644).

    a <- sum_k p_k a_k,    b <- sum_k p_k b_k,    p_k = n_k / sum n

The factors are averaged one by one, so the aggregate is not the mean of the deltas: the
difference is the covariance of the factors over the cohort.
"""

from __future__ import annotations

from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.aggregation import weighted_mean
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm


@algorithm("fedit", "Zhang et al. 2023, arXiv 2305.05644", "averages the factors")
def fedit(task: Task, train: Train) -> Algorithm:
    """FedIT for a task; `train` is what a client does in a round."""

    def client(shared, received, state, examples, key):
        objective = task.objective(shared.base)
        adapter, losses = train(objective, received, shared.pool, examples, key)
        return Update(state, adapter, losses, received)

    return Algorithm(
        name="FedIT",
        init=lambda adapter, size: adapter,
        init_client=lambda adapter, client, key: (),
        broadcast=lambda server, state: server,
        client=client,
        aggregate=lambda server, uploads, weights: weighted_mean(uploads, weights),
        personalise=lambda shared, received, state, examples: received,
        personal=False,
        sum_only=True,
    )
