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
    """

    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    classes: int = 1000


class Attention(nn.Module):
    """Self-attention with separate query, key, value and output projections."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BLD):
        heads, width = self.config.heads, self.config.width
        project = lambda name: nn.DenseGeneral((heads, width // heads), name=name)
        query, key, value = (project(n)(x_BLD) for n in ("query", "key", "value"))
        mixed = jax.nn.dot_product_attention(query, key, value)
        return nn.DenseGeneral(width, axis=(-2, -1), name="out")(mixed)


class MLP(nn.Module):
    """Two dense layers with a GELU between."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BLD):
        hidden = nn.Dense(self.config.mlp_ratio * self.config.width, name="up")(x_BLD)
        return nn.Dense(self.config.width, name="down")(nn.gelu(hidden))


class Block(nn.Module):
    """A pre-norm transformer block."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BLD):
        normed = nn.LayerNorm(name="norm_1")(x_BLD)
        x_BLD = x_BLD + Attention(self.config, name="attention")(normed)
        normed = nn.LayerNorm(name="norm_2")(x_BLD)
        return x_BLD + MLP(self.config, name="mlp")(normed)


class ViT(nn.Module):
    """Images `[B, H, W, C]` (float, any range that training saw) to logits `[B, K]`."""

    config: ViTConfig

    @nn.compact
    def __call__(self, image_BHWC):
        patch, width = (self.config.patch,) * 2, self.config.width
        embed = nn.Conv(width, patch, strides=patch, padding="VALID", name="embed")
        x_BLD = embed(image_BHWC).reshape(image_BHWC.shape[0], -1, width)
        normal = nn.initializers.normal(0.02)
        token = self.param("token", nn.initializers.zeros, (1, 1, width))
        x_BLD = jnp.concatenate([jnp.tile(token, (x_BLD.shape[0], 1, 1)), x_BLD], 1)
        x_BLD += self.param("position", normal, (1, x_BLD.shape[1], width))
        for index in range(self.config.depth):
            x_BLD = Block(self.config, name=f"block_{index}")(x_BLD)
        pooled_BD = nn.LayerNorm(name="norm")(x_BLD)[:, 0]
        return nn.Dense(self.config.classes, name="head")(pooled_BD)
