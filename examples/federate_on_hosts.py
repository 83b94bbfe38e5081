"""Federate over all devices of all hosts; if it is killed, the same command goes on.

One host: `python examples/federate_on_hosts.py OUT`. Several, each with its RANK from
0: `python examples/federate_on_hosts.py OUT HOST:PORT NUMBER RANK`, at the first host's
address. With Slurm, on a TPU pod or on GKE: `... OUT auto`.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import potara_jax as pj
from potara_jax import federated
from potara_jax.adapters import lora
from potara_jax.clients import Layout, Train, check_hosts, hosts, joined, make_mesh
from potara_jax.federated.algorithms.scaffold import scaffold


class Network(nn.Module):
    """One hidden layer, three classes."""

    @nn.compact
    def __call__(self, x):
        """Logits `[B, 3]` of inputs `[B, 4]`."""
        return nn.Dense(3, name="out")(nn.gelu(nn.Dense(16, name="hidden")(x)))


def main(out, *, clients=16, rounds=20):
    """Federate; returns the server's state."""
    rng, key, model = np.random.default_rng(0), jax.random.key(0), Network()
    inputs = rng.normal(size=(clients, 30, 4)).astype("float32")
    data = [(x, (x[:, :3] + x[:, 3:]).argmax(-1)) for x in inputs]
    split = pj.Federation.of(data, heldout=5, test=5, key=key)
    base = model.init(key, jnp.zeros((1, 4)))["params"]
    sites = lora.find_sites(model, inputs[0], targets=["hidden"])
    task, train = pj.classification(model).at(2.0, sites), Train(optax.sgd(0.1), 5, 8)
    algorithm = scaffold(task, train)
    adapters = federated.stack(lora.init(key, sites, rank=2), clients=clients)
    # Exits with one line where a host has other versions, settings or data.
    check_hosts(rounds=rounds, train=train, base=base, split=split, key=key)
    run = federated.make_round(algorithm, layout=Layout(mesh=make_mesh()))
    path, progress = Path(out) / "rounds.npz", federated.start(algorithm, adapters, key)
    done, progress = hosts.restore(path, progress)
    args = run, federated.Shared(base, split.pool), split.train, progress, key
    for number, progress, report in federated.iterate(*args, first=done, last=rounds):
        hosts.save(path, number + 1, progress)
        print(f"round {number}: loss {np.mean(report.losses):.4f}", flush=True)
    return jax.device_get(progress.server)


if __name__ == "__main__":
    where = [int(x) if x.isdigit() else x for x in sys.argv[2:] if x != "auto"]
    with joined(*where) if len(sys.argv) > 2 else nullcontext():
        main(sys.argv[1])
