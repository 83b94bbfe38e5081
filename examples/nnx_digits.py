"""Personalise a CNN in the manner of Flax's MNIST tutorial, on scikit-learn's digits.

Run `python examples/nnx_digits.py`. Every other client's digits are mirrored.
"""

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import potara_jax as pj
from potara_jax.adapters import variables


class CNN(nnx.Module):
    """A convolution with batch statistics, dropout, and two linear layers."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 32, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.linear = nnx.Linear(512, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        """Logits `[B, 10]` of images `[B, 8, 8, 1]`."""
        x = nnx.relu(self.norm(self.conv(x))).reshape(len(x), -1)
        return self.head(self.dropout(nnx.relu(self.linear(x))))


@nnx.jit
def train_step(model, optimizer, images, labels):
    """A step of the base, its statistics and its random streams."""
    loss = lambda model: optax.softmax_cross_entropy(model(images), labels).mean()
    optimizer.update(model, nnx.grad(loss)(model))


def main(*, clients=10, rounds=10, steps=200):
    """Train a base with Flax alone, on upright digits, and personalise it."""
    x, y = load_digits(return_X_y=True)
    x, model = x.reshape(-1, 8, 8, 1).astype("float32") / 16, CNN(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)
    for batch in np.random.default_rng(0).integers(0, 600, (steps, 64)):
        train_step(model, optimizer, x[batch], np.eye(10)[y[batch]])
    parts = np.array_split(np.arange(600, len(x)), clients)
    examples = [(x[p, :, :: (-1) ** i], y[p]) for i, p in enumerate(parts)]
    return pj.personalise(
        pj.classification(model, training=lambda key: {"rngs": {"dropout": key}}),
        variables(model),
        pj.Federation.of(examples, heldout=20, test=0.3, key=jax.random.key(0)),
        lora=pj.Lora(rank=4, targets=("conv", "linear"), whole=("head",)),
        federated=pj.Federated(rounds=rounds),
        local=pj.Local(rounds=rounds),
        key=jax.random.key(1),
    )


if __name__ == "__main__":
    print(main().table())
