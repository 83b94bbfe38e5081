"""FLoRA: the clients' factors are stacked, and added to the base (Wang et al. 2024).

The factors side by side, with `p_k` on one of them, have the mean of the deltas for
their delta (arXiv 2409.05976). Every round it goes into the base of all clients. A
client starts every round from a new `a`, drawn for it from the seed, and `b` = 0, so
that the base learns in other directions every time. Ranks may differ by client. The
delta is sent to all as stacked factors, or dense where that is smaller.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated import factors
from potara_jax.federated.algorithms.flexlora import sent
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.needs import needed
from potara_jax.federated.registry import algorithm
from potara_jax.keys import subkey


@algorithm(
    "flora",
    "Wang et al. 2024, arXiv 2409.05976",
    "stacks the factors and adds them to the base",
    differs="one scale for all ranks",
)
def flora(task: Task, train: Train, *, ranks: tuple[int, ...] = ()) -> Algorithm:
    """FLoRA.

    One scale for all: a client of rank `r` has `alpha_r = alpha r / R`.

    Args:
      task: what the clients learn.
      train: a client's local steps.
      ranks: dealt to the clients in turn. Default: all the adapter's.
    """
    add = needed(task.add, "FLoRA", "a way to add deltas to the base")

    def init(adapter, size):
        rows = jax.tree.map(lambda x: jnp.zeros((size.cohort, *x.shape)), adapter)
        return {
            "initial": factors.emptied(adapter),
            "whole": factors.whole(adapter),
            "deltas": factors.deltas(adapter),
            "stack": factors.stacked(rows, jnp.zeros(size.cohort)),
            "kept": jnp.int32(0),
        }

    def client(shared, received, rank, examples, key):
        fresh = factors.drawn(shared.common, subkey(key, "factors"))
        start = factors.cut(factors.join(fresh, received), rank)
        objective = task.objective(shared.base)
        adapter, losses = train(objective, start, shared.pool, examples, key)
        return Update(rank, sent(adapter, rank), losses, sent(start, rank))

    def aggregate(server, uploads, weights):
        part, whole = uploads
        stack = factors.stacked(part.value, weights)
        return {
            "initial": server["initial"],
            "whole": factors.mean_whole(whole, weights),
            "deltas": factors.add_deltas(server["deltas"], factors.deltas(stack)),
            "stack": stack,
            "kept": jnp.where(weights > 0, part.kept, 0).sum().astype(jnp.int32),
        }

    return Algorithm(
        name="FLoRA",
        init=init,
        init_client=lambda adapter, client, key: factors.rank_for(
            adapter, ranks, client
        ),
        broadcast=lambda server, state: server["whole"],
        client=client,
        aggregate=aggregate,
        personalise=lambda shared, received, rank, examples: factors.join(
            shared.common, received
        ),
        personal=False,
        sum_only=False,
        changes_base=True,
        restarts=True,
        announce=lambda server: factors.cheapest(server["stack"], server["kept"]),
        common=lambda server: server["initial"],
        rebase=lambda base, server: add(base, server["deltas"]),
    )
