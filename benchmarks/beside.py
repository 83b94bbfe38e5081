"""What needs a separate process to measure: start-up, and several devices.

python -m benchmarks.beside first_round
python -m benchmarks.beside scaled CLIENTS

Prints JSON.
"""

import time

_BEGAN = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
from functools import partial  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import measure, model  # noqa: E402
from potara_jax import federated  # noqa: E402
from potara_jax.clients.axis import Layout  # noqa: E402
from potara_jax.clients.mesh import by_client, everywhere, make_mesh, put  # noqa: E402
from potara_jax.federated import rounds  # noqa: E402
from potara_jax.federated.aggregation import weighted_mean  # noqa: E402
from potara_jax.federated.algorithms.fedit import fedit  # noqa: E402


def first_round() -> dict:
    """Seconds from the start of the process to a finished round of 16 clients."""
    given = model.setup()
    algorithm = fedit(given.task, given.train)
    adapters, examples, keys = model.arguments(given, 16)
    step = rounds.make_round(algorithm)
    progress = federated.start(algorithm, adapters, keys[0])
    jax.block_until_ready(step(given.shared, progress, examples, keys[0], 0))
    return {"seconds": time.perf_counter() - _BEGAN}


def scaled(clients: str) -> dict:
    """Seconds of a round, of one with work for each device, and of the mean alone."""
    devices, number = jax.device_count(), int(clients)
    return {
        "strong": _round(number),
        "weak": _round(number // 8 * devices),
        "collective": _collective(number),
    }


def _round(clients: int) -> float:
    given = model.setup()
    algorithm = fedit(given.task, given.train)
    adapters, examples, keys = model.arguments(given, clients)
    step = rounds.make_round(algorithm, layout=Layout(16, make_mesh()))
    state = {"progress": federated.start(algorithm, adapters, keys[0])}

    def run():
        args = given.shared, state["progress"], examples, keys[0]
        state["progress"], report = step(*args, 1)
        return state["progress"], report

    return measure.seconds(run, repeats=5)[0]


def _collective(clients: int) -> float:
    mesh, given = make_mesh(), model.setup()
    uploads = federated.stack(given.adapter, clients=clients)
    uploads = put(uploads, by_client(mesh, clients))
    weights = everywhere(mesh, np.full(clients, 1 / clients, np.float32))
    return measure.seconds(
        partial(jax.jit(weighted_mean), uploads, weights), repeats=15
    )[0]


if __name__ == "__main__":
    _measure = {"first_round": first_round, "scaled": scaled}[sys.argv[1]]
    print(json.dumps(_measure(*sys.argv[2:])))
