"""A Vision Transformer in Flax Linen.

Dimension letters: `B` batch, `H` `W` image sides, `C` colours, `L` tokens, `D` width.

Dosovitskiy et al. 2020 (arXiv 2010.11929): patches, a class token, learned positions,
pre-norm blocks, a linear head on the class token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from potara_jax.models import weights
from potara_jax.models.weights import (
    FLAT,
    FROM_HEADS,
    LINEAR,
    PATCHES,
    SAME,
    Rule,
    Table,
)

# By Hugging Face's names.
ACTIVATIONS = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": nn.gelu,
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of a Vision Transformer.

    patch: side of a square patch, in pixels.
    width, depth, heads: of the transformer; the MLP is `mlp_ratio` times as wide.
    classes: outputs of the head.
    epsilon: of the norms. activation: of the MLP, one of `ACTIVATIONS`.
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
    epsilon: float = 1e-6
    activation: str = "gelu_new"
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
    """Two dense layers with an activation between."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BLD):
        width, dtype = self.config.width, self.config.dtype
        hidden = nn.Dense(self.config.mlp_ratio * width, dtype=dtype, name="up")(x_BLD)
        hidden = ACTIVATIONS[self.config.activation](hidden)
        return nn.Dense(width, dtype=dtype, name="down")(hidden)


def norm_of(config: ViTConfig, name: str) -> nn.LayerNorm:
    """A norm of the model."""
    return nn.LayerNorm(epsilon=config.epsilon, dtype=config.dtype, name=name)


class Block(nn.Module):
    """A pre-norm transformer block."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BLD):
        norm = partial(norm_of, self.config)
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
        pooled_BD = norm_of(self.config, "norm")(x_BLD)[:, 0]
        return nn.Dense(self.config.classes, dtype=dtype, name="head")(pooled_BD)


# --- Hugging Face's files ------------------------------------------------------------


def block_rules(theirs: str, names: dict[str, str]) -> tuple[Rule, ...]:
    """Rules of the blocks, by the names that a model has there, below `theirs`."""
    both = lambda ours, kernel, bias: (
        Rule(f"block_*/{ours}/kernel", f"{theirs}.{names[ours]}.weight", kernel),
        Rule(f"block_*/{ours}/bias", f"{theirs}.{names[ours]}.bias", bias),
    )
    heads = ("attention/query", "attention/key", "attention/value")
    norm = lambda ours, kind: Rule(
        f"block_*/{ours}/{kind[0]}", f"{theirs}.{names[ours]}.{kind[1]}"
    )
    return (
        *(rule for name in heads for rule in both(name, LINEAR, FLAT)),
        *both("attention/out", FROM_HEADS, SAME),
        *(rule for name in ("mlp/up", "mlp/down") for rule in both(name, LINEAR, SAME)),
        *(norm(n, kind) for n in ("norm_1", "norm_2") for kind in NORM),
    )


NORM = (("scale", "weight"), ("bias", "bias"))

TABLE = Table(
    (
        Rule("token", "vit.embeddings.cls_token"),
        Rule("position", "vit.embeddings.position_embeddings"),
        Rule(
            "embed/kernel", "vit.embeddings.patch_embeddings.projection.weight", PATCHES
        ),
        Rule("embed/bias", "vit.embeddings.patch_embeddings.projection.bias"),
        *block_rules(
            "vit.encoder.layer.*",
            {
                "attention/query": "attention.attention.query",
                "attention/key": "attention.attention.key",
                "attention/value": "attention.attention.value",
                "attention/out": "attention.output.dense",
                "mlp/up": "intermediate.dense",
                "mlp/down": "output.dense",
                "norm_1": "layernorm_before",
                "norm_2": "layernorm_after",
            },
        ),
        *(Rule(f"norm/{ours}", f"vit.layernorm.{theirs}") for ours, theirs in NORM),
        Rule("head/kernel", "classifier.weight", LINEAR),
        Rule("head/bias", "classifier.bias"),
    ),
    ignored=("*pooler.dense.*",),
    prefix="vit.",
)


def described(config: ViTConfig, side: int, colours: int, names: Sequence[str]) -> dict:
    """The `config.json` of a model with classes of such names; `config_of` reads it.

    side, colours: of its images.
    """
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "image_size": side,
        "num_channels": colours,
        "patch_size": config.patch,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_ratio * config.width,
        "hidden_act": config.activation,
        "layer_norm_eps": config.epsilon,
        "qkv_bias": True,
        **labels(names),
    }


def labels(names: Sequence[str]) -> dict:
    """What a `config.json` says of the head's classes."""
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def config_of(found: dict, *, classes: int | None = None) -> ViTConfig:
    """The configuration that a `config.json` states.

    classes: of a head of one's own; default: the checkpoint's. Raises `ValueError` for
    another kind of model.
    """
    kind, act = found.get("model_type"), found.get("hidden_act", "gelu")
    if kind == "deit":
        raise ValueError(
            "model_type is 'deit': it has a second token, of its distillation; take a "
            "DeiT without, whose model_type is vit"
        )
    if kind != "vit" or found.get("qkv_bias") is False:
        raise ValueError(f"model_type is {kind!r}: it must be vit, with biases")
    if act not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act is {act!r}: it must be of {', '.join(ACTIVATIONS)}"
        )
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    weights.check_sizes(found, "patch_size", "intermediate_size", *sizes)
    weights.check_numbers({"layer_norm_eps": 1e-12} | found, "layer_norm_eps")
    if found["hidden_size"] % found["num_attention_heads"]:
        raise ValueError("hidden_size is no multiple of num_attention_heads")
    if found["intermediate_size"] % found["hidden_size"]:
        raise ValueError("intermediate_size is no multiple of hidden_size")
    return ViTConfig(
        patch=found["patch_size"],
        width=found["hidden_size"],
        depth=found["num_hidden_layers"],
        heads=found["num_attention_heads"],
        mlp_ratio=found["intermediate_size"] // found["hidden_size"],
        classes=classes or len(found.get("id2label") or ()) or 2,
        epsilon=found.get("layer_norm_eps", 1e-12),
        activation=act,
    )
