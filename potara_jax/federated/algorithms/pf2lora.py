"""PF2LoRA, first order: common factors and private ones of a lower rank.

    y = x W + s (x a b + x c_k d_k)

(2025, arXiv 2503.03920). The private factors, drawn for each client, are trained on the
received ones, then the common on the private; the hypergradient's second-order term is
left out.
"""

from __future__ import annotations

import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.factors import add, drawn, factors, rank_of
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm
from potara_jax.keys import subkey


@algorithm(
    "pf2lora",
    "2025, arXiv 2503.03920",
    "common and private factors side by side",
    differs="first order: without the second derivatives of the private factors",
)
def pf2lora(task: Task, train: Train, *, share: float = 0.5) -> Algorithm:
    """PF2LoRA; private factors have `share` of the rank."""

    def init_client(adapter, client, key):
        del client
        rank = max(1, round(share * rank_of(adapter)))
        return drawn(adapter, subkey(key, "factors"), rank=rank)

    def client(shared, received, private, examples, key):
        loss, pool = task.objective(shared.base), shared.pool
        of_private = lambda private, batch: loss(_both(received, private), batch)
        private, first = train(of_private, private, pool, examples, key)
        of_common = lambda common, batch: loss(_both(common, private), batch)
        common, second = train(of_common, received, pool, examples, key)
        losses = jnp.append(first, second)
        return Update(private, common, losses, received)

    return fedit(task, train)._replace(
        name="PF2LoRA",
        init_client=init_client,
        client=client,
        personalise=lambda shared, received, private, examples: _both(
            received, private
        ),
        personal=True,
    )


def _both(common: Adapter, private: Adapter) -> Adapter:
    return common | add(factors(common), private)
