"""FDLoRA: a personal and a shared LoRA, fused at the end (Qi et al. 2024).

In its first round a client trains its personal factors; the mean of the first round's
starts the shared ones. Then the shared ones are trained as in FedIT, with a Nesterov
step of the server on their mean change, and every `every` rounds, or as soon after that
as the client takes part, the personal ones become the client's copy (arXiv 2406.07925,
algorithm 1, where all clients take part in every round).

The model is a pair: `personal` and `shared`, the shared ones twice for a client that
has not taken part. It predicts by the mean of their factors; the paper's AdaFusion
searches for weights on samples instead, as LoraHub does.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.aggregation import select, weighted_mean
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.factors import interpolate
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm


@algorithm(
    "fdlora",
    "Qi et al. 2024, arXiv 2406.07925",
    "a personal and a shared adapter, fused",
    differs="its own model is the mean of both; AdaFusion is a row of a comparison",
)
def fdlora(
    task: Task,
    train: Train,
    *,
    every: int = 7,
    learning_rate: float = 1.0,
    momentum: float = 0.5,
) -> Algorithm:
    """FDLoRA. Choose `every` so that it does not divide the number of rounds."""
    outer = optax.sgd(learning_rate, momentum=momentum, nesterov=True)

    def init(adapter, size):
        memory = outer.init(adapter)
        return {"shared": adapter, "memory": memory, "round": jnp.int32(0)}

    def client(shared, received, state, examples, key):
        objective = task.objective(shared.base)
        adapter, losses = train(objective, received, shared.pool, examples, key)
        period = jnp.asarray(shared.round // every, jnp.int32)
        copied = period > state["period"]
        personal = select(copied, adapter, state["personal"])
        state = {"personal": personal, "period": period}
        return Update(state, adapter, losses, received)

    def personalise(shared, received, state, examples):
        begun = state["period"] >= 0
        return {
            "personal": select(begun, state["personal"], received),
            "shared": received,
        }

    def aggregate(server, uploads, weights):
        mean, old = weighted_mean(uploads, weights), server["shared"]
        change = jax.tree.map(jnp.subtract, old, mean)
        updates, memory = outer.update(change, server["memory"])
        first = server["round"] == 0
        new = select(first, mean, optax.apply_updates(old, updates))
        memory = select(first, server["memory"], memory)
        return {"shared": new, "memory": memory, "round": server["round"] + 1}

    return fedit(task, train)._replace(
        name="FDLoRA",
        init=init,
        init_client=lambda adapter, client, key: {
            "personal": adapter,
            "period": jnp.int32(-1),
        },
        broadcast=lambda server, state: server["shared"],
        client=client,
        aggregate=aggregate,
        personalise=personalise,
        personal=True,
        predict=lambda task: task.of(
            lambda model: interpolate(model["personal"], model["shared"], 0.5)
        ),
    )
