"""FedOpt: the server takes an optimiser's step along the clients' mean change.

    server <- server + optimiser(mean_k upload_k - server)

(Reddi et al. 2021, arXiv 2003.00295, algorithm 2; FedAvgM is that of Hsu et al. 2019,
arXiv 1909.06335). Optax's Adam and Yogi correct the bias of their first steps, which
the paper's do not.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.aggregation import is_float
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.interface import Algorithm
from potara_jax.federated.registry import algorithm

_PAPER = "Reddi et al. 2021, arXiv 2003.00295"
_UNBIASED = "moments are corrected for their bias"


def with_server_optimizer(
    algorithm: Algorithm, optimizer: optax.GradientTransformation
) -> Algorithm:
    """An algorithm whose server's numbers are updated by an Optax optimiser.

    The gradient is minus the change that the algorithm's aggregate would make, so
    `optax.sgd(1.0)` changes nothing. The server's state must be the model alone: a step
    along sums of control variates, or along deltas that are in the base, has no
    meaning.

    Args:
      algorithm: whose server's state is the model.
      optimizer: of the server.
    """
    of_model = lambda fn: lambda server, *more: fn(server["model"], *more)

    def init(adapter, size):
        model = algorithm.init(adapter, size)
        return {"model": model, "memory": optimizer.init(_numbers(model))}

    def aggregate(server, uploads, weights):
        old = server["model"]
        aim = algorithm.aggregate(old, uploads, weights)
        change = jax.tree.map(jnp.subtract, _numbers(old), _numbers(aim))
        updates, memory = optimizer.update(change, server["memory"], _numbers(old))
        moved = optax.apply_updates(_numbers(old), updates)
        return {"model": _with_numbers(aim, moved), "memory": memory}

    return algorithm._replace(
        init=init,
        aggregate=aggregate,
        broadcast=of_model(algorithm.broadcast),
        announce=of_model(algorithm.announce),
        common=of_model(algorithm.common),
        rebase=lambda base, server: algorithm.rebase(base, server["model"]),
        turns=tuple(with_server_optimizer(t, optimizer) for t in algorithm.turns),
    )


def _numbers(tree: Any) -> list[jax.Array]:
    """The floating-point leaves."""
    return [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]


def _with_numbers(tree: Any, numbers: Any) -> Any:
    rest = iter(numbers)
    return jax.tree.map(lambda leaf: next(rest) if is_float(leaf) else leaf, tree)


@algorithm(
    "fedavgm", "Hsu et al. 2019, arXiv 1909.06335", "FedIT with momentum on the server"
)
def fedavgm(
    task: Task, train: Train, *, rate: float = 1.0, momentum: float = 0.5
) -> Algorithm:
    """FedIT with momentum on the server."""
    optimizer = optax.sgd(rate, momentum=momentum)
    return with_server_optimizer(fedit(task, train), optimizer)._replace(name="FedAvgM")


@algorithm("fedadam", _PAPER, "FedIT with Adam on the server", differs=_UNBIASED)
def fedadam(
    task: Task, train: Train, *, rate: float = 0.01, eps: float = 1e-3
) -> Algorithm:
    """FedIT with Adam on the server; `eps` is the paper's `tau`."""
    optimizer = optax.adam(rate, b1=0.9, b2=0.99, eps=eps)
    return with_server_optimizer(fedit(task, train), optimizer)._replace(name="FedAdam")


@algorithm("fedyogi", _PAPER, "FedIT with Yogi on the server", differs=_UNBIASED)
def fedyogi(
    task: Task, train: Train, *, rate: float = 0.01, eps: float = 1e-3
) -> Algorithm:
    """FedIT with Yogi on the server; `eps` is the paper's `tau`."""
    optimizer = optax.yogi(rate, b1=0.9, b2=0.99, eps=eps)
    return with_server_optimizer(fedit(task, train), optimizer)._replace(name="FedYogi")
