"""APFL: a mixture of a personal and the federated model (Deng et al. 2020).

    v_bar = alpha v + (1 - alpha) w

In every step `w` takes FedIT's step and `v` one through the mixture, both from where
the last step has left them (arXiv 2003.13461, algorithm 1). `alpha` takes one step a
round, before these, along its gradient `<v - w, grad f(v_bar)>` (eq. 10). The mixture
is of factors. A client that has not taken part has `w`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from potara_jax.clients.task import Task
from potara_jax.clients.training import Train, nth
from potara_jax.data.federation import take
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.factors import interpolate
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm


@algorithm(
    "apfl",
    "Deng et al. 2020, arXiv 2003.13461",
    "a personal and the federated model, interpolated",
    differs="mixes factors, not outputs",
)
def apfl(
    task: Task, train: Train, *, alpha: float = 0.5, learning_rate: float = 0.1
) -> Algorithm:
    """APFL; `alpha` is the mixture's start, and stays where `learning_rate` is 0."""

    def client(shared, received, state, examples, key):
        loss, personal = task.objective(shared.base), state["personal"]

        def of_alpha(alpha):
            batch = take(shared.pool, nth(train.batches(examples, key), 0))
            return loss(interpolate(personal, received, alpha), batch)

        slope = jax.grad(of_alpha)(state["alpha"])
        alpha = jnp.clip(state["alpha"] - learning_rate * slope, 0, 1)

        def objective(both, batch):
            fixed = jax.lax.stop_gradient(both["common"])
            mixed = loss(interpolate(both["personal"], fixed, alpha), batch)
            return loss(both["common"], batch) + mixed

        both = {"personal": personal, "common": received}
        both, losses = train(objective, both, shared.pool, examples, key)
        losses = jnp.tile(losses / 2, 2)  # a step takes a gradient of each
        state = {"personal": both["personal"], "alpha": alpha, "begun": jnp.array(True)}
        return Update(state, both["common"], losses, received)

    return fedit(task, train)._replace(
        name="APFL",
        init_client=lambda adapter, client, key: {
            "personal": adapter,
            "alpha": jnp.float32(alpha),
            "begun": jnp.array(False),
        },
        client=client,
        personalise=lambda shared, received, state, examples: interpolate(
            state["personal"], received, jnp.where(state["begun"], state["alpha"], 0)
        ),
        personal=True,
    )
