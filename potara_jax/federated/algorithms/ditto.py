"""Ditto: a personal model beside FedIT's, pulled to it (Li et al. 2021).

    v_k = argmin f_k(v) + strength / 2 |v - w|^2

(arXiv 2012.04221, algorithm 1). The personal model is trained with what the client
received, then the federated one as FedIT does. A client that has not taken part has the
federated one.
"""

from __future__ import annotations

import jax.numpy as jnp

from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.aggregation import select
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.factors import squared_distance
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm


@algorithm(
    "ditto",
    "Li et al. 2021, arXiv 2012.04221",
    "a personal model, pulled towards FedIT's",
)
def ditto(task: Task, train: Train, *, strength: float = 0.1) -> Algorithm:
    """Ditto; with `strength` 0 the personal models are those of local training."""

    def client(shared, received, state, examples, key):
        loss = task.objective(shared.base)

        def near(adapter, batch):
            pull = squared_distance(adapter, received)
            return loss(adapter, batch) + strength / 2 * pull

        personal, first = train(near, state["personal"], shared.pool, examples, key)
        common, second = train(loss, received, shared.pool, examples, key)
        losses = jnp.append(first, second)
        state = {"personal": personal, "begun": jnp.array(True)}
        return Update(state, common, losses, received)

    return fedit(task, train)._replace(
        name="Ditto",
        init_client=lambda adapter, client, key: {
            "personal": adapter,
            "begun": jnp.array(False),
        },
        client=client,
        personalise=lambda shared, received, state, examples: select(
            state["begun"], state["personal"], received
        ),
        personal=True,
    )
