"""Personalise a regression: sixteen thermometers, each of which reads wrong in its way.

Run `python examples/regression.py`. It prints a table of losses.
"""

import jax
import numpy as np
from flax import linen as nn

import potara_jax as pj


class Network(nn.Module):
    """Two hidden layers, one output."""

    @nn.compact
    def __call__(self, x):
        """Outputs `[B]` of inputs `[B, 3]`."""
        x = nn.gelu(nn.Dense(32, name="first")(x))
        x = nn.gelu(nn.Dense(32, name="second")(x))
        return nn.Dense(1, name="out")(x)[:, 0]


def squared_error(apply, batch):
    """The loss of each example of a batch: any function of the adapted model."""
    return 0.5 * (apply(batch.inputs) - batch.labels) ** 2


def measured(rng, number=60):
    """One client's inputs and outputs: a common law, and its own deviation from it."""
    x = rng.normal(size=(number, 3)).astype("float32")
    law = np.sin(x[:, 0]) + 0.5 * x[:, 1]
    y = law + 0.4 * rng.normal() * x[:, 2] + 0.3 * rng.normal(size=number)
    return x, y.astype("float32")


def main(*, clients=16, rounds=20):
    """Personalise, and print the table."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    examples = [measured(rng) for _ in range(clients)]
    model = Network()
    base = model.init(key, examples[0][0])["params"]  # in practice: pre-trained
    result = pj.personalise(
        pj.objective(model, squared_error),
        base,
        pj.Federation.of(examples, heldout=10, test=20, key=key),
        lora=pj.Lora(rank=4, targets=("second",), whole=("out",)),
        federated=pj.Federated(rounds=rounds),
        local=pj.Local(rounds=rounds),
        merging=pj.Merging(curvature="empirical", methods=("grid",)),
        key=key,
    )
    print(result.table())
    return result


if __name__ == "__main__":
    main()
