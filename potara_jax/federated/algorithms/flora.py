"""FLoRA: the clients' factors are stacked, and added to the base (Wang et al. 2024).

The factors side by side, with `p_k` on one of them, have the mean of the deltas for
their delta (arXiv 2409.05976). Every round it goes into the base of all clients, who
start anew from the initial `a`, and `b` = 0. Ranks may differ by client.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Adapter, Array
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated import factors
from potara_jax.federated.factors import Deltas
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.ledger import Part
from potara_jax.federated.needs import needed
from potara_jax.federated.registry import algorithm


@algorithm(
    "flora",
    "Wang et al. 2024, arXiv 2409.05976",
    "stacks the factors and adds them to the base",
)
def flora(task: Task, train: Train, *, ranks: tuple[int, ...] = ()) -> Algorithm:
    """FLoRA; `ranks` are dealt to the clients in turn (default: all the adapter's).

    One scale for all: a client of rank `r` has `alpha_r = alpha r / R`.
    """
    add = needed(task.add, "FLoRA", "a way to add deltas to the base")

    def init(adapter, size):
        rows = jax.tree.map(lambda x: jnp.zeros((size.cohort, *x.shape)), adapter)
        stack = factors.stacked(rows, jnp.zeros(size.cohort))
        none = jnp.zeros(size.cohort, jnp.int32)
        deltas = {p: algebra.delta(e) for p, e in factors.factors(adapter).items()}
        rank, whole = factors.rank_of(adapter), factors.whole(adapter)
        return _server(factors.emptied(adapter), whole, deltas, stack, none, rank)

    def client(shared, received, rank, examples, key):
        start = factors.cut(factors.join(shared.common, received), rank)
        objective = task.objective(shared.base)
        adapter, losses = train(objective, start, shared.pool, examples, key)
        of = jnp.int32(factors.rank_of(adapter))
        upload = Part(factors.factors(adapter), rank, of), factors.whole(adapter)
        return Update(rank, upload, losses)

    def aggregate(server, uploads, weights):
        part, whole = uploads
        mean = factors.mean_delta(part.value, weights)
        return _server(
            server["initial"],
            factors.mean_whole(whole, weights),
            factors.add_deltas(server["deltas"], mean),
            factors.stacked(part.value, weights),
            jnp.where(weights > 0, part.kept, 0),
            factors.rank_of(server["initial"]),
        )

    return Algorithm(
        name="FLoRA",
        init=init,
        init_client=lambda adapter, client: factors.rank_for(adapter, ranks, client),
        broadcast=lambda server, state: server["whole"],
        client=client,
        aggregate=aggregate,
        personalise=lambda shared, received, rank: factors.join(
            shared.common, received
        ),
        personal=False,
        sum_only=False,
        changes_base=True,
        announce=lambda server: server["stack"],
        common=lambda server: server["initial"],
        rebase=lambda base, server: add(base, server["deltas"]),
    )


def _server(
    initial: Adapter,
    whole: Adapter,
    deltas: Deltas,
    stack: Adapter,
    kept: Array,
    rank: int,
) -> dict[str, Any]:
    """The server's state; of the stack only the clients' ranks travel."""
    total = jnp.int32(len(kept) * rank)
    part = Part(stack, kept.sum().astype(jnp.int32), total)
    return {"initial": initial, "whole": whole, "deltas": deltas, "stack": part}
