"""Adapt a model in Flax NNX: a transformer block, whose attention gets the adapters.

Run `python examples/nnx_model.py`. The base is the model's state, by path.
"""

import jax
import numpy as np
from flax import nnx

import potara_jax as pj
from potara_jax.adapters import lora, variables


class Classifier(nnx.Module):
    """Tokens, attention, and a head on their mean."""

    def __init__(self, rngs, *, words=20, width=16, classes=3):
        self.embedding = nnx.Embed(words, width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, tokens):
        """Logits `[B, classes]` of tokens `[B, L]`."""
        x = self.embedding(tokens)
        return self.head((x + self.attention(x)).mean(1))


def texts(rng, number=48):
    """Texts of eight words; the class is the third of the alphabet that begins them."""
    tokens = rng.integers(0, 20, (number, 8))
    return tokens, (tokens[:, 0] // 7).astype(int)


def main(*, tasks=4, steps=100):
    """Train an adapter for each task, and apply the first."""
    rng, model = np.random.default_rng(0), Classifier(nnx.Rngs(0))
    examples = [texts(rng) for _ in range(tasks)]
    adapters, losses = pj.train_adapters(
        pj.classification(model),
        variables(model),
        examples,
        lora=pj.Lora(rank=4, targets=("query", "value", "out"), whole=("head",)),
        steps=steps,
        learning_rate=1e-2,
        key=jax.random.key(0),
    )
    first = jax.tree.map(lambda leaf: leaf[0], adapters)
    apply = lora.bind(model, scale=16 / 4)  # alpha / rank of `Lora`
    logits = apply(variables(model), first, examples[0][0])
    right = (logits.argmax(-1) == examples[0][1]).mean()
    print(f"mean loss: {losses[:, 0].mean():.2f}, then {losses[:, -1].mean():.2f}")
    print(f"the first adapter is right on {right:.0%} of its texts")
    return losses, logits


if __name__ == "__main__":
    main()
