"""The project's ViT and Llama in Flax NNX: the same parameters under the same paths.

`B` batch, `L` tokens, `D` width. The simplest configurations: a head on the class
token, tied embeddings, no cache. Written for the tests alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from potara_jax.models import llama
from potara_jax.models.activations import tanh_gelu
from potara_jax.models.llama import LlamaConfig
from potara_jax.models.vit import ViTConfig, matmul_of_patches


class ViTAttention(nnx.Module):
    def __init__(self, c, rngs):
        heads = c.heads, c.width // c.heads
        for name in ("query", "key", "value"):
            setattr(self, name, nnx.LinearGeneral(c.width, heads, rngs=rngs))
        self.out = nnx.LinearGeneral(heads, c.width, axis=(-2, -1), rngs=rngs)

    def __call__(self, x):
        projected = self.query(x), self.key(x), self.value(x)
        return self.out(jax.nn.dot_product_attention(*projected))


class ViTMLP(nnx.Module):
    def __init__(self, c, rngs):
        self.up = nnx.Linear(c.width, c.mlp_ratio * c.width, rngs=rngs)
        self.down = nnx.Linear(c.mlp_ratio * c.width, c.width, rngs=rngs)

    def __call__(self, x):
        return self.down(tanh_gelu(self.up(x)))


class ViTBlock(nnx.Module):
    def __init__(self, c, rngs):
        self.norm_1, self.norm_2 = (
            nnx.LayerNorm(c.width, epsilon=c.epsilon, rngs=rngs) for _ in range(2)
        )
        self.attention, self.mlp = ViTAttention(c, rngs), ViTMLP(c, rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class ViT(nnx.Module):
    """Images `[B, side, side, 1]` to logits."""

    def __init__(self, c: ViTConfig, side: int, rngs: nnx.Rngs):
        patch, self.depth = (c.patch, c.patch), c.depth
        self.embed = nnx.Conv(
            1,
            c.width,
            patch,
            strides=patch,
            padding="VALID",
            conv_general_dilated=matmul_of_patches,
            rngs=rngs,
        )
        self.token = nnx.Param(jnp.zeros((1, 1, c.width)))
        self.position = nnx.Param(jnp.zeros((1, 1 + (side // c.patch) ** 2, c.width)))
        for index in range(c.depth):
            setattr(self, f"block_{index}", ViTBlock(c, rngs))
        self.norm = nnx.LayerNorm(c.width, epsilon=c.epsilon, rngs=rngs)
        self.head = nnx.Linear(c.width, c.classes, rngs=rngs)

    def __call__(self, images):
        patches = self.embed(images)
        x = patches.reshape(len(images), -1, patches.shape[-1])
        tokens = jnp.tile(self.token[...], (len(images), 1, 1))
        x = jnp.concatenate([tokens, x], 1) + self.position[...]
        for index in range(self.depth):
            x = getattr(self, f"block_{index}")(x)
        return self.head(self.norm(x)[:, 0])


def dense(inputs, outputs, rngs):
    return nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)


class LlamaAttention(nnx.Module):
    def __init__(self, c, rngs):
        self.heads, self.key_heads, self.frequencies = (
            c.heads,
            c.key_heads,
            nnx.static(tuple(llama.frequencies(c).tolist())),
        )
        self.q_proj = dense(c.width, c.heads * c.head, rngs)
        self.k_proj = dense(c.width, c.key_heads * c.head, rngs)
        self.v_proj = dense(c.width, c.key_heads * c.head, rngs)
        self.o_proj = dense(c.heads * c.head, c.width, rngs)

    def __call__(self, x):
        split = lambda y, heads: y.reshape(*x.shape[:2], heads, -1)
        position = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        turn = lambda y: llama.rotate(y, position, jnp.asarray(self.frequencies))
        mixed = jax.nn.dot_product_attention(
            turn(split(self.q_proj(x), self.heads)),
            turn(split(self.k_proj(x), self.key_heads)),
            split(self.v_proj(x), self.key_heads),
            is_causal=True,
        )
        return self.o_proj(mixed.reshape(*x.shape[:2], -1))


class LlamaMLP(nnx.Module):
    def __init__(self, c, rngs):
        self.gate_proj, self.up_proj = (
            dense(c.width, c.hidden, rngs) for _ in range(2)
        )
        self.down_proj = dense(c.hidden, c.width, rngs)

    def __call__(self, x):
        return self.down_proj(nnx.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nnx.Module):
    def __init__(self, c, rngs):
        self.input_layernorm, self.post_attention_layernorm = (
            nnx.RMSNorm(c.width, epsilon=c.epsilon, rngs=rngs) for _ in range(2)
        )
        self.self_attn, self.mlp = LlamaAttention(c, rngs), LlamaMLP(c, rngs)

    def __call__(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nnx.Module):
    """A `Text` to the logits of its next tokens; the layers are one scanned stack."""

    def __init__(self, c: LlamaConfig, rngs: nnx.Rngs):
        make = nnx.vmap(lambda rngs: LlamaLayer(c, rngs), in_axes=0)
        self.embed_tokens = nnx.Embed(c.vocabulary, c.width, rngs=rngs)
        self.layers = nnx.split_rngs(splits=c.depth)(make)(rngs)
        self.norm = nnx.RMSNorm(c.width, epsilon=c.epsilon, rngs=rngs)

    def __call__(self, text):
        call = lambda x, layer: layer(x)
        scanned = nnx.scan(call, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        x = scanned(self.embed_tokens(text.tokens), self.layers)
        x = jnp.take_along_axis(x, text.at[..., None], 1)
        return self.embed_tokens.attend(self.norm(x))
