"""HetLoRA: zero-padded factors of each client's own rank (Cho et al. 2024).

Clients receive the server's factors cut to their rank, and are averaged with weights
`|a_k b_k|_F` (arXiv 2401.06432). A client whose tail, the part beyond `decay r_k`, has
shrunk in a round gives it up: its rank becomes `floor(decay r_k)`. That is rare with
AdamW, whose steps move the tail by more than the mean over clients leaves of it: on the
digits one client of twenty prunes in 20 rounds.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Adapter, Array, is_factors
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated import factors
from potara_jax.federated.aggregation import weighted_mean
from potara_jax.federated.algorithms.flexlora import flexlora, opened, sent
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm


@algorithm(
    "hetlora",
    "Cho et al. 2024, arXiv 2401.06432",
    "a rank for each client, padded and pruned",
    differs="one scale for all ranks; penalty and decay of a re-implementation",
)
def hetlora(
    task: Task,
    train: Train,
    *,
    ranks: tuple[int, ...] = (),
    decay: float = 0.99,
    penalty: float = 0.01,
) -> Algorithm:
    """HetLoRA.

    Args:
      task: what the clients learn.
      train: a client's local steps.
      ranks: dealt to the clients in turn. Default: all the adapter's.
      decay: the share of its rank that a client keeps when it prunes.
      penalty: of the tail's `|a_tail| |b_tail|` in the objective.
    """

    def client(shared, received, rank, examples, key):
        start, loss = opened(received), task.objective(shared.base)
        kept = jnp.maximum(jnp.floor(decay * rank), 1).astype(jnp.int32)

        def objective(adapter, batch):
            return loss(adapter, batch) + penalty * _tail(adapter, kept)

        adapter, losses = train(objective, start, shared.pool, examples, key)
        rank = jnp.where(_tail(adapter, kept) < _tail(start, kept), kept, rank)
        upload = sent(factors.cut(adapter, rank), rank)
        return Update(rank, upload, losses, received)

    def aggregate(server, uploads, weights):
        uploads = opened(uploads)
        shares = (weights > 0) * _norms(uploads)
        shares = jnp.where(shares.sum() > 0, shares / shares.sum(), weights)
        mean = weighted_mean(factors.factors(uploads), shares)
        return mean | factors.mean_whole(uploads, weights)

    return flexlora(task, train, ranks=ranks)._replace(
        name="HetLoRA",
        client=client,
        aggregate=aggregate,
        personal=True,  # clients' ranks fall one by one
        restarts=False,
    )


def _tail(adapter: Adapter, kept: Array) -> Array | int:
    """`sum |a_tail| |b_tail|` over the modules; smooth where a factor is zero."""

    def product(e):
        beyond = jnp.arange(e["a"].shape[-1]) >= kept
        a = jnp.where(beyond, e["a"], 0)
        b = jnp.where(beyond[:, None], e["b"], 0)
        size = lambda x: jnp.sqrt((x**2).sum() + 1e-20)
        return size(a) * size(b)

    return sum(product(e) for e in adapter.values() if is_factors(e))


def _norms(uploads: Adapter) -> Array:
    """`|a_k b_k|_F` of each client over all its modules, `[C]`."""
    square = lambda e: jax.vmap(lambda x: (algebra.norm(x) ** 2).sum())(e)
    return jnp.sqrt(sum(square(e) for e in factors.factors(uploads).values()))
