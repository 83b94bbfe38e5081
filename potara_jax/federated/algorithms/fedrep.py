"""FedPer and FedRep: a private head on a shared body (Arivazhagan 2019; Collins 2021).

The head is what is trained whole; where nothing is, the adapters of the last block.
FedPer trains both at once (arXiv 1912.00818), FedRep first the head and then the body
(arXiv 2102.07078, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.aggregation import weighted_mean
from potara_jax.federated.factors import divide, last_modules
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm


@algorithm("fedper", "Arivazhagan et al. 2019, arXiv 1912.00818", "a private head")
def fedper(task: Task, train: Train) -> Algorithm:
    """FedPer: head and body are trained together, the body is averaged."""

    def client(shared, received, head, examples, key):
        objective, start = task.objective(shared.base), received | head
        adapter, losses = train(objective, start, shared.pool, examples, key)
        head, body = divide(adapter, set(head))
        return Update(head, body, losses, received)

    return _with_head("FedPer", client)


@algorithm(
    "fedrep", "Collins et al. 2021, arXiv 2102.07078", "a private head, trained first"
)
def fedrep(task: Task, train: Train) -> Algorithm:
    """FedRep: the head's steps with the body fixed, then the body's with the head."""

    def client(shared, received, head, examples, key):
        loss, pool = task.objective(shared.base), shared.pool
        of_head = lambda head, batch: loss(received | head, batch)
        head, first = train(of_head, head, pool, examples, key)
        of_body = lambda body, batch: loss(body | head, batch)
        body, second = train(of_body, received, pool, examples, key)
        return Update(head, body, jnp.append(first, second), received)

    return _with_head("FedRep", client)


def _with_head(name: str, client: Callable[..., Update]) -> Algorithm:
    split = lambda adapter: divide(adapter, last_modules(adapter))
    return Algorithm(
        name=name,
        init=lambda adapter, size: split(adapter)[1],
        init_client=lambda adapter, client, key: split(adapter)[0],
        broadcast=lambda server, state: server,
        client=client,
        aggregate=lambda server, uploads, weights: weighted_mean(uploads, weights),
        personalise=lambda shared, received, head, examples: received | head,
        personal=True,
        sum_only=True,
    )
