"""Adapt a model of your own: convolutions, batch statistics, and a flag as an argument.

Run `python examples/own_model.py`. LoRA finds kernels by the paths of their modules;
the model need not know of it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import potara_jax as pj


class ConvNet(nn.Module):
    """Two convolutions with batch normalisation, and a head."""

    @nn.compact
    def __call__(self, images, train):
        """Logits `[B, 5]` of images `[B, 8, 8, 1]`."""
        for number in range(2):
            images = nn.Conv(8, (3, 3), name=f"conv_{number}")(images)
            norm = nn.BatchNorm(use_running_average=not train, name=f"norm_{number}")
            images = nn.relu(norm(images))
        return nn.Dense(5, name="head")(images.mean((1, 2)))


def client(rng, number=40):
    """Images of one client, whose brightest quarter says the class of most."""
    images = rng.normal(size=(number, 8, 8, 1)).astype("float32")
    labels = rng.integers(0, 5, number)
    corners = {0: (0, 0), 1: (0, 4), 2: (4, 0), 3: (4, 4)}
    for image, label in zip(images, labels, strict=True):
        row, column = corners.get(label, (2, 2))
        image[row : row + 4, column : column + 4] += 2
    return images, labels


def main(*, clients=6, steps=60):
    """Train an adapter for each client, and print how the loss falls."""
    rng, key, model = np.random.default_rng(0), jax.random.key(0), ConvNet()
    # All variables: `params`, which LoRA adapts, and `batch_stats`, which stay frozen.
    base = model.init(key, jnp.zeros((1, 8, 8, 1)), train=False)
    adapters, losses = pj.train_adapters(
        pj.classification(model, inputs=lambda images: (images, False)),
        base,
        [client(rng) for _ in range(clients)],
        lora=pj.Lora(rank=2, targets=(r"conv_\d",), whole=("head",)),
        steps=steps,
        learning_rate=1e-2,
        key=key,
    )
    print(f"adapted: {', '.join(adapters)}")
    print(f"mean loss: {losses[:, 0].mean():.2f}, then {losses[:, -1].mean():.2f}")
    return adapters, losses


if __name__ == "__main__":
    main()
