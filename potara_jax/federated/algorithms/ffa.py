"""FFA-LoRA: the factors `a` stay at their initial values (Sun et al. 2024).

With one fixed `a` the mean of the deltas is the delta of the mean `b`, exactly
(arXiv 2403.12313). `a` comes from the seed and never travels.
"""

from __future__ import annotations

from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.aggregation import weighted_mean
from potara_jax.federated.factors import all_but_a, join, only_a
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm


@algorithm("ffa", "Sun et al. 2024, arXiv 2403.12313", "trains and sends b alone")
def ffa(task: Task, train: Train) -> Algorithm:
    """FFA-LoRA. Modules that are trained whole travel with `b`."""

    def client(shared, received, state, examples, key):
        loss = task.objective(shared.base)
        objective = lambda b, batch: loss(join(shared.common, b), batch)
        b, losses = train(objective, received, shared.pool, examples, key)
        return Update(state, b, losses, received)

    return Algorithm(
        name="FFA-LoRA",
        init=lambda adapter, size: {"a": only_a(adapter), "rest": all_but_a(adapter)},
        init_client=lambda adapter, client, key: (),
        broadcast=lambda server, state: server["rest"],
        client=client,
        aggregate=lambda server, uploads, weights: (
            server | {"rest": weighted_mean(uploads, weights)}
        ),
        personalise=lambda shared, received, state, examples: join(
            shared.common, received
        ),
        personal=False,
        sum_only=True,
        common=lambda server: server["a"],
    )
