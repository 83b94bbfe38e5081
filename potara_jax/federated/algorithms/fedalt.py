"""FedALT: a client's own LoRA and the rest of the world's, mixed token by token.

    y = x W + s (p_1 x a_L b_L + p_2 x a_R b_R),     p = softmax(x G)

(Bian et al. 2026, arXiv 2503.11880). `a_R`, `b_R` are the means of the other clients'
factors, fixed in a round; the client's factors and the gates `G` are trained and never
overwritten. The gates are private, and drawn for each client.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter, Array
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.aggregation import weighted_mean
from potara_jax.federated.factors import add, factors, whole
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm
from potara_jax.keys import subkey


@algorithm(
    "fedalt",
    "Bian et al. 2026, arXiv 2503.11880",
    "the client's and the others' adapters, mixed for each token",
)
def fedalt(task: Task, train: Train) -> Algorithm:
    """FedALT. The server keeps the sum of factors; a client sends what it lacks of its.

    A client keeps account of what the sum has of it, which compression and clipping
    make differ from its factors; of a client that joins later it has nothing. Modules
    that are trained whole stay with the client.

    Args:
      task: what the clients learn.
      train: a client's local steps.
    """

    def init(adapter, size):
        total = jax.tree.map(lambda x: size.clients * x, factors(adapter))
        return {"sum": total, "clients": jnp.int32(size.clients)}

    def init_client(adapter, client, key):
        gates = _gates(factors(adapter), subkey(key, "factors"))
        summed = factors(adapter)
        model = {"personal": adapter, "gates": gates}
        return {
            "model": model,
            "summed": summed,
            "client": jnp.asarray(client, jnp.int32),
        }

    def broadcast(server, state):
        inside = state["client"] < server["clients"]
        others = jnp.maximum(server["clients"] - inside, 1)
        rest = lambda total, summed: (total - inside * summed) / others
        return jax.tree.map(rest, server["sum"], state["summed"])

    def client(shared, rest, state, examples, key):
        loss, old = task.objective(shared.base), state["model"]
        objective = lambda model, batch: loss(_mixed(model, rest), batch)
        new, losses = train(objective, old, shared.pool, examples, key)
        personal = factors(new["personal"])
        change = jax.tree.map(jnp.subtract, personal, state["summed"])
        nothing = jax.tree.map(jnp.zeros_like, change)
        return Update(state | {"model": new}, change, losses, nothing)

    def settle(state, change):
        return state | {"summed": jax.tree.map(jnp.add, state["summed"], change)}

    def aggregate(server, uploads, weights):
        change = weighted_mean(uploads, (weights > 0).astype(jnp.float32))
        total = jax.tree.map(jnp.add, server["sum"], change)
        return server | {"sum": total}

    return Algorithm(
        name="FedALT",
        init=init,
        init_client=init_client,
        broadcast=broadcast,
        client=client,
        aggregate=aggregate,
        personalise=lambda shared, rest, state, examples: _mixed(state["model"], rest),
        personal=True,
        settle=settle,
        owed=lambda lost: jax.tree.map(jnp.zeros_like, lost),
        sum_only=False,  # what a client receives depends on its factors
    )


def _gates(adapter: Adapter, key: Array) -> dict[str, Array]:
    """Kaiming-uniform gates `[..., D, 2]`, one for either adapter."""

    def gate(e, key):
        *stack, inputs, _ = e["a"].shape
        bound = inputs**-0.5
        return jax.random.uniform(key, (*stack, inputs, 2), minval=-bound, maxval=bound)

    keys = jax.random.split(key, len(adapter))
    return {p: gate(adapter[p], k) for p, k in zip(sorted(adapter), keys, strict=True)}


def _mixed(model: dict[str, Any], rest: Adapter) -> Adapter:
    both = add(factors(model["personal"]), rest)
    gated = {path: e | {"g": model["gates"][path]} for path, e in both.items()}
    return whole(model["personal"]) | gated
