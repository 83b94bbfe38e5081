"""FedIT's round by FedJAX: its federated averaging, of the factors.

Needs `benchmarks/requirements.txt`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import optax

# FedJAX 0.0.17 calls what later versions of JAX no longer have.
if not hasattr(jax, "tree_map"):
    jax.tree_map = jax.tree.map

import fedjax
from fedjax.algorithms import fed_avg

from benchmarks.model import BATCH, RATE, STEPS, Setup, arguments
from potara_jax.data.federation import Batch


def averaging(given: Setup, clients: int) -> Callable:
    """A function that runs a round over all clients."""
    base, pool = given.shared.base, given.shared.pool
    adapters, examples, keys = arguments(given, clients)

    def gradient(adapter, batch, key):
        del key
        objective = given.task.objective(base)
        return jax.grad(objective)(adapter, Batch(batch["x"], batch["y"]))

    adamw = optax.adamw(RATE, weight_decay=1e-4)
    algorithm = fed_avg.federated_averaging(
        gradient,
        fedjax.optimizers.create_optimizer_from_optax(adamw),
        fedjax.optimizers.sgd(learning_rate=1.0),
        fedjax.ShuffleRepeatBatchHParams(
            batch_size=BATCH, num_epochs=None, num_steps=STEPS
        ),
    )
    images, labels = np.asarray(pool.inputs), np.asarray(pool.labels)
    held = [
        (str(i).encode(), _dataset(images[row], labels[row]), key)
        for i, (row, key) in enumerate(zip(examples.index, keys, strict=True))
    ]
    state = {"server": algorithm.init(jax.tree.map(lambda x: x[0], adapters))}

    def run():
        state["server"], _ = algorithm.apply(state["server"], held)
        return state["server"].params

    return run


def _dataset(images, labels):
    return fedjax.ClientDataset({"x": images, "y": labels})
