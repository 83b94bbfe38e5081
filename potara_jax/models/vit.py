"""A Vision Transformer in Flax Linen.

Dimension letters: `B` batch, `H` height, `W` width, `C` colours, `L` tokens, `D`
features of a token, `K` classes.

Dosovitskiy et al. 2020 (arXiv 2010.11929): patches, a class token, learned positions,
pre-norm blocks, a linear head on the class token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

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
    Conversion,
    Rule,
    Table,
)

Array = jax.Array
Implementation = Literal["xla", "cudnn"]

# By Hugging Face's names.
ACTIVATIONS = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": nn.gelu,
}


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of a Vision Transformer.

    patch: side of a square patch, in pixels.
    width, depth, heads: of the transformer.
    mlp_ratio: width of the MLP over `width`.
    classes: outputs of the head.
    epsilon: added to the variance by the norms.
    activation: of the MLP, one of `ACTIVATIONS`.
    dtype: of the activations; parameters keep their dtypes.
    remat: recompute a block's activations for the gradient, which takes less memory
      and a third more time.
    attention: `xla`, or `cudnn` for flash attention on a GPU in bfloat16. The latter
      has no forward-mode derivatives, so it serves training, not Hermite weights.
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
    attention: Implementation = "xla"


class Attention(nn.Module):
    """Self-attention with separate query, key, value and output projections."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        heads, width, dtype = self.config.heads, self.config.width, self.config.dtype
        query, key, value = (
            nn.DenseGeneral((heads, width // heads), dtype=dtype, name=name)(x_BLD)
            for name in ("query", "key", "value")
        )
        mixed = attend(query, key, value, self.config.attention)
        return nn.DenseGeneral(width, axis=(-2, -1), dtype=dtype, name="out")(mixed)


def attend(
    query: Array, key: Array, value: Array, implementation: Implementation
) -> Array:
    """Attention of heads `[B, L, N, H]` over all tokens.

    cuDNN has no gradient for an odd number of tokens, so these get one more.
    """
    if implementation == "cudnn" and query.shape[1] % 2:
        return attend_padded(query, key, value, implementation)
    return jax.nn.dot_product_attention(
        query, key, value, implementation=implementation
    )


def attend_padded(
    query: Array, key: Array, value: Array, implementation: Implementation
) -> Array:
    """The same, computed with one more token, which no other attends to."""
    batch, tokens = query.shape[:2]
    lengths = jnp.full(batch, tokens, jnp.int32)
    longer = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value))
    mixed = jax.nn.dot_product_attention(
        *longer,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return mixed[:, :tokens]


class MLP(nn.Module):
    """Two dense layers with an activation between them."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        width, dtype = self.config.width, self.config.dtype
        hidden = nn.Dense(self.config.mlp_ratio * width, dtype=dtype, name="up")(x_BLD)
        hidden = ACTIVATIONS[self.config.activation](hidden)
        return nn.Dense(width, dtype=dtype, name="down")(hidden)


def _norm(config: ViTConfig, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.epsilon, dtype=config.dtype, name=name)


class Block(nn.Module):
    """A pre-norm transformer block."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        normed = _norm(self.config, "norm_1")(x_BLD)
        x_BLD = x_BLD + Attention(self.config, name="attention")(normed)
        normed = _norm(self.config, "norm_2")(x_BLD)
        return x_BLD + MLP(self.config, name="mlp")(normed)


class ViT(nn.Module):
    """Images `[B, H, W, C]` (float, in the range of training) to logits `[B, K]`."""

    config: ViTConfig

    @nn.compact
    def __call__(self, image_BHWC: Array) -> Array:
        patch, width = (self.config.patch,) * 2, self.config.width
        dtype = jnp.dtype(self.config.dtype)
        embed = nn.Conv(
            width, patch, strides=patch, padding="VALID", dtype=dtype, name="embed"
        )
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
        pooled_BD = _norm(self.config, "norm")(x_BLD)[:, 0]
        return nn.Dense(self.config.classes, dtype=dtype, name="head")(pooled_BD)


# --- Hugging Face files --------------------------------------------------------------

_BLOCK = "vit.encoder.layer.*"


def _dense(
    ours: str, theirs: str, kernel: Conversion, bias: Conversion
) -> tuple[Rule, Rule]:
    """The rules of a block's dense layer."""
    return (
        Rule(f"block_*/{ours}/kernel", f"{_BLOCK}.{theirs}.weight", kernel),
        Rule(f"block_*/{ours}/bias", f"{_BLOCK}.{theirs}.bias", bias),
    )


def _layer_norm(ours: str, theirs: str) -> tuple[Rule, Rule]:
    """The rules of a norm."""
    return (
        Rule(f"{ours}/scale", f"{theirs}.weight"),
        Rule(f"{ours}/bias", f"{theirs}.bias"),
    )


TABLE = Table(
    (
        Rule("token", "vit.embeddings.cls_token"),
        Rule("position", "vit.embeddings.position_embeddings"),
        Rule(
            "embed/kernel", "vit.embeddings.patch_embeddings.projection.weight", PATCHES
        ),
        Rule("embed/bias", "vit.embeddings.patch_embeddings.projection.bias"),
        *_dense("attention/query", "attention.attention.query", LINEAR, FLAT),
        *_dense("attention/key", "attention.attention.key", LINEAR, FLAT),
        *_dense("attention/value", "attention.attention.value", LINEAR, FLAT),
        *_dense("attention/out", "attention.output.dense", FROM_HEADS, SAME),
        *_dense("mlp/up", "intermediate.dense", LINEAR, SAME),
        *_dense("mlp/down", "output.dense", LINEAR, SAME),
        *_layer_norm("block_*/norm_1", f"{_BLOCK}.layernorm_before"),
        *_layer_norm("block_*/norm_2", f"{_BLOCK}.layernorm_after"),
        *_layer_norm("norm", "vit.layernorm"),
        Rule("head/kernel", "classifier.weight", LINEAR),
        Rule("head/bias", "classifier.bias"),
    ),
    ignored=("*pooler.dense.*",),
    prefix="vit.",
    renamed=(
        ("encoder.layer.", "layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ),
)


def description_of(
    config: ViTConfig, *, side: int, colours: int, names: Sequence[str]
) -> dict[str, Any]:
    """The `config.json` of a model; `config_of` reads it.

    Args:
      config: its sizes.
      side: of its images, in pixels.
      colours: of its images.
      names: of its classes.
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
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def config_of(
    description: Mapping[str, Any], *, classes: int | None = None
) -> ViTConfig:
    """The configuration that a `config.json` describes.

    Args:
      description: the object in the file.
      classes: of a new head; default: those of the checkpoint's head.

    Raises:
      ValueError: it describes another kind of model, or impossible sizes.
    """
    given: dict[str, Any] = {
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        **description,
    }

    _check_kind(given)
    _check_sizes(given)
    return ViTConfig(
        patch=given["patch_size"],
        width=given["hidden_size"],
        depth=given["num_hidden_layers"],
        heads=given["num_attention_heads"],
        mlp_ratio=given["intermediate_size"] // given["hidden_size"],
        classes=classes or len(given.get("id2label") or ()) or 2,
        epsilon=given["layer_norm_eps"],
        activation=given["hidden_act"],
    )


def _check_kind(given: Mapping[str, Any]) -> None:
    kind, activation = given.get("model_type"), given["hidden_act"]
    if kind == "deit":
        raise ValueError(
            "model_type is 'deit', whose distillation token is not supported; use a "
            "DeiT without one, whose model_type is vit"
        )
    if kind != "vit" or given.get("qkv_bias") is False:
        raise ValueError(f"model_type is {kind!r}: it must be vit, with biases")
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"hidden_act is {activation!r}: it must be one of {known}")


def _check_sizes(given: Mapping[str, Any]) -> None:
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    weights.check_sizes(given, "patch_size", "intermediate_size", *sizes)
    weights.check_numbers(given, "layer_norm_eps")
    if given["hidden_size"] % given["num_attention_heads"]:
        raise ValueError("hidden_size is not a multiple of num_attention_heads")
    if given["intermediate_size"] % given["hidden_size"]:
        raise ValueError("intermediate_size is not a multiple of hidden_size")
