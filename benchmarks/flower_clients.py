"""FedIT's round by Flower's simulation engine, every client a jitted JAX program.

Needs `benchmarks/requirements.txt`.
"""

from __future__ import annotations

import logging
import time
from functools import cache

import jax
import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.model import EXAMPLES, arguments, local_round, setup

_ROUNDS = 4


def seconds_of_a_round(clients: int) -> float:
    """The median of the rounds after the first, in which the programs are compiled."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    ends: list[float] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=clients)
        first = ArrayRecord(_arrays(setup().adapter))

        def record_end(number, arrays) -> None:
            ends.append(time.perf_counter())

        strategy.start(grid, first, num_rounds=_ROUNDS, evaluate_fn=record_end)

    each = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, _client(), num_supernodes=clients, backend_config=each)
    return float(np.median(np.diff(ends)[1:]))


def _client() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        _, one, shared, (adapters, examples, keys) = _programs(
            int(context.node_config["num-partitions"])
        )
        received = message.content["arrays"].to_numpy_ndarrays()
        tree = jax.tree.structure(jax.tree.map(lambda x: x[0], adapters))
        mine, key = jax.tree.map(lambda x: x[client], (examples, keys))
        trained = one(shared, jax.tree.unflatten(tree, received), mine, key)
        content = {
            "arrays": ArrayRecord(_arrays(trained)),
            "metrics": MetricRecord({"num-examples": EXAMPLES}),
        }
        return Message(content=RecordDict(content), reply_to=message)

    return app


@cache
def _programs(clients: int):
    """A worker's model and program, made once."""
    given = setup()
    one = jax.jit(local_round(given))
    return given, one, given.shared, arguments(given, clients)


def _arrays(adapter) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(adapter)]
