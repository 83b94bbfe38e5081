"""A Vision Transformer in Flax Linen.

Dimension letters: `B` batch, `H` `W` image sides, `C` colours, `L` tokens, `D` width.

Dosovitskiy et al. 2020 (arXiv 2010.11929): patches, a class token, learned positions,
pre-norm blocks, a linear head on the class token.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of a Vision Transformer.

    patch: side of a square patch, in pixels.
    width, depth, heads: of the transformer; the MLP is `mlp_ratio` times as wide.
    classes: outputs of the head.
    dtype: of activations; parameters keep theirs.
    remat: whether a block's activations are computed again for the gradient, which
      takes less memory and a third more time.
    """

    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    classes: int = 1000
    dtype: str = "float32"
    remat: bool = False


class Attention(nn.Module):
    """Self-attention with separate query, key, value and output projections."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BLD):
        heads, width, dtype = self.config.heads, self.config.width, self.config.dtype
        each = (heads, width // heads)
        project = lambda name: nn.DenseGeneral(each, dtype=dtype, name=name)
        query, key, value = (project(n)(x_BLD) for n in ("query", "key", "value"))
        mixed = jax.nn.dot_product_attention(query, key, value)
        return nn.DenseGeneral(width, axis=(-2, -1), dtype=dtype, name="out")(mixed)


class MLP(nn.Module):
    """Two dense layers with a GELU between."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BLD):
        width, dtype = self.config.width, self.config.dtype
        hidden = nn.Dense(self.config.mlp_ratio * width, dtype=dtype, name="up")(x_BLD)
        return nn.Dense(width, dtype=dtype, name="down")(nn.gelu(hidden))


class Block(nn.Module):
    """A pre-norm transformer block."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BLD):
        norm = lambda name: nn.LayerNorm(dtype=self.config.dtype, name=name)
        normed = norm("norm_1")(x_BLD)
        x_BLD = x_BLD + Attention(self.config, name="attention")(normed)
        normed = norm("norm_2")(x_BLD)
        return x_BLD + MLP(self.config, name="mlp")(normed)


class ViT(nn.Module):
    """Images `[B, H, W, C]` (float, any range that training saw) to logits `[B, K]`."""

    config: ViTConfig

    @nn.compact
    def __call__(self, image_BHWC):
        patch, width = (self.config.patch,) * 2, self.config.width
        dtype = jnp.dtype(self.config.dtype)
        how = {"strides": patch, "padding": "VALID", "dtype": dtype}
        embed = nn.Conv(width, patch, **how, name="embed")
        x_BLD = embed(image_BHWC).reshape(image_BHWC.shape[0], -1, width)
        normal = nn.initializers.normal(0.02)
        token = self.param("token", nn.initializers.zeros, (1, 1, width))
        tokens = jnp.tile(token.astype(dtype), (x_BLD.shape[0], 1, 1))
        x_BLD = jnp.concatenate([tokens, x_BLD], 1)
        position = self.param("position", normal, (1, x_BLD.shape[1], width))
        x_BLD += position.astype(dtype)
        block = nn.remat(Block) if self.config.remat else Block
        for index in range(self.config.depth):
            x_BLD = block(self.config, name=f"block_{index}")(x_BLD)
        pooled_BD = nn.LayerNorm(dtype=dtype, name="norm")(x_BLD)[:, 0]
        return nn.Dense(self.config.classes, dtype=dtype, name="head")(pooled_BD)
