"""FlexLoRA: the mean of the deltas, cut to each client's rank (Bai et al. 2024).

The server forms `sum_k p_k a_k b_k` and sends client `k` its best approximation of
rank `r_k` (arXiv 2402.11505): the SVD of stacked factors, never of a dense matrix, with
square roots of the singular values on both sides.
"""

from __future__ import annotations

import jax.numpy as jnp

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Adapter, Array
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated import factors
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.ledger import Part
from potara_jax.federated.registry import algorithm


@algorithm(
    "flexlora",
    "Bai et al. 2024, arXiv 2402.11505",
    "averages the deltas and truncates to a rank",
    differs="one scale for all ranks",
)
def flexlora(task: Task, train: Train, *, ranks: tuple[int, ...] = ()) -> Algorithm:
    """FlexLoRA.

    One scale for all: a client of rank `r` has `alpha_r = alpha r / R`.

    Args:
      task: what the clients learn.
      train: a client's local steps.
      ranks: dealt to the clients in turn. Default: all the adapter's.
    """

    def broadcast(server, rank):
        return sent(factors.cut(server, rank), rank)

    def client(shared, received, rank, examples, key):
        objective, start = task.objective(shared.base), opened(received)
        adapter, losses = train(objective, start, shared.pool, examples, key)
        return Update(rank, sent(adapter, rank), losses, received)

    def aggregate(server, uploads, weights):
        uploads, rank = opened(uploads), factors.rank_of(server)
        stack = factors.stacked(uploads, weights)
        cut = lambda entry: algebra.truncate(entry, rank=rank)
        whole = factors.mean_whole(uploads, weights)
        return algebra.map_factors(cut, stack) | whole

    return Algorithm(
        name="FlexLoRA",
        init=lambda adapter, size: adapter,
        init_client=lambda adapter, client, key: factors.rank_for(
            adapter, ranks, client
        ),
        broadcast=broadcast,
        client=client,
        aggregate=aggregate,
        personalise=lambda shared, received, rank, examples: opened(received),
        personal=len(set(ranks)) > 1,
        sum_only=False,
        restarts=True,  # an SVD leaves signs and rotations of the factors open
    )


def sent(adapter: Adapter, rank: Array) -> tuple[Part, Adapter]:
    """A payload of which only the client's rank travels."""
    of = jnp.int32(factors.rank_of(adapter))
    return Part(factors.factors(adapter), rank, of), factors.whole(adapter)


def opened(payload: tuple[Part, Adapter]) -> Adapter:
    """The adapter of such a payload."""
    part, whole = payload
    return part.value | whole
