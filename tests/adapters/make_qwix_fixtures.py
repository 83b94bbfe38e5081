"""Make `fixtures/qwix.safetensors`: an adapter of Qwix, and what Qwix computes with it.

    python -m tests.adapters.make_qwix_fixtures

needs qwix; made with qwix 0.1.8, flax 0.12.8 and jax 0.10.2, on a CPU. The tests need
no Qwix: they build `Layers`, the same model.

    base/<path>    parameters, all drawn at random
    lora/<path>    the factors, as Qwix names and shapes them
    inputs, base_outputs, outputs
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

FILE = Path(__file__).parent / "fixtures" / "qwix.safetensors"
RANK, ALPHA = 2, 5.0


class Layers(nnx.Module):
    """One layer of each kind that Qwix adapts: its weights have other axes each."""

    def __init__(self, rngs):
        self.embed = nnx.Conv(2, 4, (3, 2), strides=2, padding="VALID", rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, 8, decode=False, rngs=rngs)
        self.up = nnx.Einsum("...d,ndh->...nh", (3, 4, 2), (3, 2), rngs=rngs)
        self.down = nnx.Einsum("...nh,nhd->...d", (3, 2, 4), None, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x).reshape(len(x), -1, 4)
        x = x + self.attention(x)
        x = x + self.down(nnx.gelu(self.up(x)))
        for block in self.blocks:
            x = x + nnx.gelu(block(x))
        return self.head(x.mean(1))


def flat(state, prefix):
    leaves = nnx.to_flat_state(state)
    return {"/".join(map(str, (prefix, *p))): np.asarray(v[...]) for p, v in leaves}


def main():
    import qwix

    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.4), x.dtype)
    model, inputs = Layers(nnx.Rngs(0)), draw(jnp.zeros((3, 7, 6, 2)))
    nnx.update(model, jax.tree.map(draw, nnx.state(model, nnx.Param)))
    provider = qwix.LoraProvider(module_path=".*", rank=RANK, alpha=ALPHA)
    adapted = qwix.apply_lora_to_model(model, provider, inputs, rngs=nnx.Rngs(1))
    nnx.update(adapted, jax.tree.map(draw, nnx.state(adapted, nnx.LoRAParam)))
    arrays = flat(nnx.state(model, nnx.Param), "base")
    arrays |= flat(nnx.state(adapted, nnx.LoRAParam), "lora")
    outputs = {"base_outputs": model(inputs), "outputs": adapted(inputs)}
    arrays |= {k: np.asarray(v) for k, v in (outputs | {"inputs": inputs}).items()}
    save_file(arrays, FILE)


if __name__ == "__main__":
    main()
