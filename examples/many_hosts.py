"""Train adapters on all devices of all hosts, and write each host's part.

One host: `python examples/many_hosts.py OUT`. Several, each with its RANK from 0:
`python examples/many_hosts.py OUT HOST:PORT NUMBER RANK`, at the first host's address.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from safetensors.numpy import save_file

import potara_jax as pj
from potara_jax.clients import Layout, check_hosts, joined, make_mesh


class Network(nn.Module):
    """One hidden layer, one output."""

    @nn.compact
    def __call__(self, x):
        """Outputs `[B]` of inputs `[B, 4]`."""
        return nn.Dense(1, name="out")(nn.gelu(nn.Dense(16, name="hidden")(x)))[:, 0]


def squared_error(apply, batch):
    """The loss of each example."""
    return 0.5 * (apply(batch.inputs) - batch.labels) ** 2


def main(out, *, adapters=64, steps=50):
    """Train, and write `part-RANK.safetensors`: the adapters on this host's devices."""
    rng, key, model = np.random.default_rng(0), jax.random.key(0), Network()
    inputs = rng.normal(size=(adapters, 30, 4)).astype("float32")
    base = model.init(key, jnp.zeros((1, 4)))["params"]
    check_hosts(steps=steps, base=base, inputs=inputs, key=key)
    trained, losses = pj.train_adapters(
        pj.objective(model, squared_error),
        base,
        [(x, x[:, i % 4]) for i, x in enumerate(inputs)],
        lora=pj.Lora(rank=2, targets=("hidden",), whole=("out",)),
        steps=steps,
        layout=Layout(mesh=make_mesh()),
        key=key,
    )
    here = trained["hidden"]["a"].addressable_shards  # those of this host's devices
    parts = {str(x.index[0].start or 0): np.asarray(x.data) for x in here}
    save_file(parts, Path(out) / f"part-{jax.process_index()}.safetensors")
    print(f"mean loss {losses[:, -1].mean():.4f} on {jax.device_count()} devices")
    return losses


if __name__ == "__main__":
    here = sys.argv[2:]
    with joined(here[0], *map(int, here[1:])) if here else nullcontext():
        main(sys.argv[1])
