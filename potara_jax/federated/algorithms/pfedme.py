"""pFedMe: personal models on Moreau envelopes (Dinh et al. 2020).

    theta ~ argmin f(theta) + strength / 2 |theta - w|^2     by `inner` steps a batch
    w <- w - rate * strength (w - theta)

(arXiv 2006.08848, algorithm 1, with the server's `beta` 1). The inner steps are those
of the clients' optimiser; the personal model is `theta`, or `w` for a client that has
not taken part.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from potara_jax.clients.task import Task
from potara_jax.clients.training import Train, run_steps
from potara_jax.data.federation import take
from potara_jax.federated.aggregation import select
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.factors import interpolate, squared_distance
from potara_jax.federated.interface import Algorithm, Update
from potara_jax.federated.registry import algorithm


@algorithm(
    "pfedme",
    "Dinh et al. 2020, arXiv 2006.08848",
    "personal models by Moreau envelopes",
    differs="inner steps are those of the clients' optimiser",
)
def pfedme(
    task: Task,
    train: Train,
    *,
    strength: float = 1.0,
    rate: float = 0.5,
    inner: int = 3,
) -> Algorithm:
    """pFedMe; `rate` is the outer step's, times `strength`, in (0, 1]."""

    def client(shared, received, state, examples, key):
        loss = task.objective(shared.base)

        def step(carry, draw):
            common, theta, memory = carry
            batch = take(shared.pool, draw)

            def envelope(theta):
                pull = squared_distance(theta, common)
                return loss(theta, batch) + strength / 2 * pull

            def descend(inside, _):
                theta, memory = inside
                value, grads = jax.value_and_grad(envelope)(theta)
                updates, memory = train.optimizer.update(grads, memory, theta)
                return (optax.apply_updates(theta, updates), memory), value

            inside = theta, memory
            (theta, memory), values = jax.lax.scan(descend, inside, None, inner)
            moved = interpolate(theta, common, rate)
            return (moved, theta, memory), values

        start = received, received, train.optimizer.init(received)
        draws = train.batches(examples, key)
        (common, theta, _), losses = run_steps(step, start, draws, examples)
        state = {"theta": theta, "begun": jnp.array(True)}
        return Update(state, common, losses.ravel(), received)

    return fedit(task, train)._replace(
        name="pFedMe",
        init_client=lambda adapter, client, key: {
            "theta": adapter,
            "begun": jnp.array(False),
        },
        client=client,
        personalise=lambda shared, received, state, examples: select(
            state["begun"], state["theta"], received
        ),
        personal=True,
    )
