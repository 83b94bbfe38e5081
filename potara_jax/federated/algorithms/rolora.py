"""RoLoRA: the rounds alternate between `b` and `a` (Chen et al. 2025).

With the other factor alike on all clients, every round's mean is exact (arXiv
2502.01755). The first round trains `b`, since `b` = 0 gives `a` no gradient.
"""

from __future__ import annotations

from collections.abc import Callable

from potara_jax.adapters.lora import Adapter
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.aggregation import weighted_mean
from potara_jax.federated.factors import all_but_a, join, only_a
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm

Half = Callable[[Adapter], Adapter]


@algorithm(
    "rolora",
    "Chen et al. 2025, arXiv 2502.01755",
    "trains b and a in turn, so that averaging is exact",
)
def rolora(task: Task, train: Train) -> Algorithm:
    """RoLoRA. Modules that are trained whole travel with `b`.

    All clients hear of every mean, so one that joins a later cohort knows both factors.

    Args:
      task: what the clients learn.
      train: a client's local steps.
    """
    odd = _turn(task, train, trained=all_but_a, fixed=only_a)
    even = _turn(task, train, trained=only_a, fixed=all_but_a)
    return odd._replace(turns=(odd, even))


def _turn(task: Task, train: Train, *, trained: Half, fixed: Half) -> Algorithm:
    """Rounds that train one half; the other was the last to be averaged."""

    def client(shared, received, state, examples, key):
        loss, other = task.objective(shared.base), fixed(shared.common)
        objective = lambda half, batch: loss(join(other, half), batch)
        start = trained(shared.common)
        half, losses = train(objective, start, shared.pool, examples, key)
        return Update(state, half, losses, start)

    return Algorithm(
        name="RoLoRA",
        init=lambda adapter, size: adapter,
        init_client=lambda adapter, client, key: (),
        broadcast=lambda server, state: (),
        client=client,
        aggregate=lambda server, uploads, weights: join(
            server, weighted_mean(uploads, weights)
        ),
        personalise=lambda shared, received, state, examples: shared.common,
        personal=False,
        sum_only=True,
        announce=fixed,
        common=lambda server: server,
    )
