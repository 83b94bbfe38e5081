"""FedALA: clients learn how much of the server's model to take (Zhang et al. 2023).

    theta = own + W * (received - own),   W in [0, 1], learned for every number

on the last modules; the others are the received ones (arXiv 2212.01197, eqs. 2 to 5).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.data.federation import take
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.factors import divide, last_modules
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm


@algorithm(
    "fedala",
    "Zhang et al. 2023, arXiv 2212.01197",
    "learns a mix of server and client before training",
)
def fedala(
    task: Task, train: Train, *, blocks: int = 1, rate: float = 1.0
) -> Algorithm:
    """FedALA on the last `blocks`; `rate` is of the weights' gradient descent."""

    def init_client(adapter, client):
        upper, _ = divide(adapter, last_modules(adapter, blocks))
        return {"own": adapter, "weights": jax.tree.map(jnp.ones_like, upper)}

    def client(shared, received, state, examples, key):
        loss = task.objective(shared.base)
        start = lambda weights: _mixed(state["own"], received, weights)

        def descend(weights, row):
            batch = take(shared.pool, row)
            of = lambda weights: loss(start(weights), batch)
            value, grads = jax.value_and_grad(of)(weights)
            move = lambda w, g: jnp.clip(w - rate * g, 0, 1)
            return jax.tree.map(move, weights, grads), value

        rows, first = train.batches(examples, key), shared.round == 0
        weights, before = jax.lax.scan(descend, state["weights"], rows)
        keep = lambda old, new: jnp.where(first, old, new)
        weights = jax.tree.map(keep, state["weights"], weights)
        begin = jax.tree.map(keep, received, start(weights))
        adapter, losses = train(loss, begin, shared.pool, examples, key)
        before = jnp.where(first, jnp.nan, before)
        state = {"own": adapter, "weights": weights}
        return Update(state, adapter, jnp.append(before, losses))

    return fedit(task, train)._replace(
        name="FedALA",
        init_client=init_client,
        client=client,
        personalise=lambda shared, received, state: state["own"],
        personal=True,
    )


def _mixed(own: Adapter, received: Adapter, weights: Adapter) -> Adapter:
    between = lambda x, y, w: x + w * (y - x)
    mixed = {
        path: jax.tree.map(between, own[path], received[path], w)
        for path, w in weights.items()
    }
    return received | mixed
