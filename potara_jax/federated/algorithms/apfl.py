"""APFL: a mixture of a personal and the federated model (Deng et al. 2020).

    v_bar = alpha v + (1 - alpha) w

`w` is trained as FedIT does, `v` through the mixture, and `alpha` by its own gradient
`<v - w, grad f(v_bar)>` (arXiv 2003.13461, algorithm 1 and eq. 10). The mixture is of
factors.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.data.federation import take
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.factors import interpolate
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm


@algorithm(
    "apfl",
    "Deng et al. 2020, arXiv 2003.13461",
    "a personal and the federated model, interpolated",
)
def apfl(
    task: Task, train: Train, *, alpha: float = 0.5, learning_rate: float = 0.1
) -> Algorithm:
    """APFL; `alpha` is the mixture's start, and stays where `learning_rate` is 0."""

    def client(shared, received, state, examples, key):
        loss, alpha = task.objective(shared.base), state["alpha"]
        common, first = train(loss, received, shared.pool, examples, key)
        mixed = lambda own, batch: loss(interpolate(own, common, alpha), batch)
        own, second = train(mixed, state["own"], shared.pool, examples, key)

        def of_alpha(alpha):
            batch = take(shared.pool, train.batches(examples, key)[-1])
            return loss(interpolate(own, common, alpha), batch)

        alpha = jnp.clip(alpha - learning_rate * jax.grad(of_alpha)(alpha), 0, 1)
        state = {"own": own, "alpha": alpha}
        return Update(state, common, jnp.append(first, second))

    return fedit(task, train)._replace(
        name="APFL",
        init_client=lambda adapter, client: {
            "own": adapter,
            "alpha": jnp.float32(alpha),
        },
        client=client,
        personalise=lambda shared, received, state: interpolate(
            state["own"], received, state["alpha"]
        ),
        personal=True,
    )
