"""Train 256 adapters on one frozen base, and write one of them for PEFT.

Run `python examples/many_adapters.py FOLDER`. Nothing is federated: one adapter per
data set, all trained at once.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import potara_jax as pj
from potara_jax.adapters import lora, peft


class Network(nn.Module):
    """Two hidden layers and logits."""

    @nn.compact
    def __call__(self, x):
        """Logits `[B, 4]` of inputs `[B, 16]`."""
        x = nn.gelu(nn.Dense(64, name="first")(x))
        x = nn.gelu(nn.Dense(64, name="second")(x))
        return nn.Dense(4, name="head")(x)


def data_set(rng):
    """20 to 40 examples, whose class depends on directions of this set alone."""
    x = rng.normal(size=(rng.integers(20, 40), 16)).astype("float32")
    return x, (x @ rng.normal(size=(16, 4))).argmax(1)


def main(folder, *, adapters=256, steps=100):
    """Train, print the share of examples that are right, and write the first."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    examples = [data_set(rng) for _ in range(adapters)]
    model, settings = Network(), pj.Lora(rank=4, alpha=4.0, targets=("first", "second"))
    base = model.init(key, jnp.zeros((1, 16)))["params"]  # in practice: pre-trained
    trained, losses = pj.train_adapters(
        pj.classification(model), base, examples, lora=settings, steps=steps, key=key
    )
    print(f"mean loss: {losses[:, 0].mean():.2f}, then {losses[:, -1].mean():.2f}")
    first = jax.tree.map(lambda leaf: leaf[0], trained)
    inputs, labels = examples[0]
    apply = lora.bind(model, scale=settings.scale)
    right = apply(base, first, inputs).argmax(-1) == labels
    print(f"the first adapter is right on {right.mean():.0%} of its examples")
    peft.write(folder, first)  # the scale is 1, as PEFT's file will say
    return losses


if __name__ == "__main__":
    main(sys.argv[1])
