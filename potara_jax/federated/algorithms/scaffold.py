"""SCAFFOLD: control variates correct the clients' drift (Karimireddy et al. 2020).

    y <- y - eta (g + c - c_k),     c_k' = c_k - c + (x - y) / (K eta)
    x <- x + mean(y - x),           c <- c + |S| / N mean(c_k' - c_k)

(arXiv 1910.06378, algorithm 1, option II), where `S` are the clients that arrive: `c`
stays the mean of all `c_k`, also where compression lets only a part of `c_k' - c_k`
through, since a client keeps what has arrived and sends the rest with the next. It
holds for SGD alone, so clients use it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from potara_jax.adapters.lora import Adapter
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.aggregation import weighted_mean
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm


@algorithm(
    "scaffold",
    "Karimireddy et al. 2020, arXiv 1910.06378",
    "corrects client drift by control variates",
)
def scaffold(task: Task, train: Train, *, learning_rate: float = 0.5) -> Algorithm:
    """SCAFFOLD with SGD of a learning rate. A client sends `y` and `c_k' - c_k`."""
    train = dataclasses.replace(train, optimizer=optax.sgd(learning_rate))

    def init(adapter, size):
        number = jnp.float32(size.clients)
        return {"x": adapter, "c": _zeros(adapter), "clients": number}

    def client(shared, received, control, examples, key):
        loss, start = task.objective(shared.base), received["x"]
        push = jax.tree.map(jnp.subtract, received["c"], control)

        def objective(adapter, batch):
            return loss(adapter, batch) + optax.tree.vdot(push, adapter)

        adapter, losses = train(objective, start, shared.pool, examples, key)
        steps = jnp.maximum(jnp.isfinite(losses).sum(), 1)
        drift = lambda x, y: (x - y) / (steps * learning_rate)
        change = jax.tree.map(
            lambda x, y, c: drift(x, y) - c, start, adapter, received["c"]
        )
        upload = {"x": adapter, "change": change}
        reference = {"x": start, "change": _zeros(change)}
        return Update(control, upload, losses, reference)

    def settle(control, upload):
        return jax.tree.map(jnp.add, control, upload["change"])

    def aggregate(server, uploads, weights):
        arrived = (weights > 0) / server["clients"]
        change = weighted_mean(uploads["change"], arrived)
        control = jax.tree.map(jnp.add, server["c"], change)
        return server | {"x": weighted_mean(uploads["x"], weights), "c": control}

    return Algorithm(
        name="SCAFFOLD",
        init=init,
        init_client=lambda adapter, client, key: _zeros(adapter),
        broadcast=lambda server, state: {"x": server["x"], "c": server["c"]},
        client=client,
        aggregate=aggregate,
        personalise=lambda shared, received, state, examples: received["x"],
        personal=False,
        sum_only=True,
        settle=settle,
        owed=lambda lost: lost | {"change": _zeros(lost["change"])},
    )


def _zeros(adapter: Adapter) -> Adapter:
    return jax.tree.map(jnp.zeros_like, adapter)
