"""A Vision Transformer in Flax Linen.

Dimension letters: `B` batch, `H` height, `W` width, `C` colours, `L` tokens, `D`
features of a token, `K` classes.

Dosovitskiy et al. 2020 (arXiv 2010.11929): patches, a class token, learned positions,
pre-norm blocks, a linear head on the class token. What DINOv2 adds to it is optional:
layer scale, a SwiGLU as MLP, and a head on the class token and the mean patch.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from potara_jax.models import positions, weights
from potara_jax.models.activations import gelu, tanh_gelu
from potara_jax.models.positions import Grid
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
Pooling = Literal["token", "token_and_mean"]

# By Hugging Face's names.
ACTIVATIONS = {"gelu": gelu, "gelu_new": tanh_gelu}


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of a Vision Transformer.

    Attributes:
      patch: side of a square patch, in pixels.
      width: of the transformer.
      depth: number of layers.
      heads: of each layer's attention.
      mlp_ratio: width of the MLP over `width`; two thirds of it if it is gated.
      classes: outputs of the head.
      epsilon: added to the variance by the norms.
      activation: of the MLP, one of `ACTIVATIONS`.
      gated: the MLP is a SwiGLU, which has its own activation.
      layer_scale: multiply what each half of a block adds by learned numbers.
      pooling: what the head reads: the class token, or it and the mean of the patches.
      grid: rows and columns of patches that positions are learned for; images of other
        sizes get them interpolated. Default: those of the first images.
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
    gated: bool = False
    layer_scale: bool = False
    pooling: Pooling = "token"
    grid: Grid | None = None
    dtype: str = "float32"
    remat: bool = False
    attention: Implementation = "xla"


class Attention(nn.Module):
    """Self-attention to the first `tokens`, with separate projections."""

    config: ViTConfig
    tokens: int

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        heads, width, dtype = self.config.heads, self.config.width, self.config.dtype
        query, key, value = (
            nn.DenseGeneral((heads, width // heads), dtype=dtype, name=name)(x_BLD)
            for name in ("query", "key", "value")
        )
        mixed = attend(query, key, value, self.tokens, self.config.attention)
        return nn.DenseGeneral(width, axis=(-2, -1), dtype=dtype, name="out")(mixed)


def attend(
    query: Array, key: Array, value: Array, tokens: int, implementation: Implementation
) -> Array:
    """Attention of heads `[B, L, N, H]` to the first `tokens`; the others get zeros.

    Args:
      query: `[B, L, N, H]`.
      key: `[B, L, N, H]`.
      value: `[B, L, N, H]`.
      tokens: at most `L`.
      implementation: see `ViTConfig.attention`.
    """
    batch, length = query.shape[:2]
    lengths = None if tokens == length else jnp.full(batch, tokens, jnp.int32)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )


def _even(x_BLD: Array, implementation: Implementation) -> Array:
    """One more token where cuDNN has no gradient: for an odd number of them."""
    odd = implementation == "cudnn" and x_BLD.shape[1] % 2
    return jnp.pad(x_BLD, ((0, 0), (0, 1), (0, 0))) if odd else x_BLD


class MLP(nn.Module):
    """Two dense layers with an activation between them."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        width, dtype = self.config.width, self.config.dtype
        hidden = nn.Dense(self.config.mlp_ratio * width, dtype=dtype, name="up")(x_BLD)
        hidden = ACTIVATIONS[self.config.activation](hidden)
        return nn.Dense(width, dtype=dtype, name="down")(hidden)


class GatedMLP(nn.Module):
    """A SwiGLU, `(silu(x u) * x v) w`, with `u` and `v` in one kernel.

    Shazeer 2020 (arXiv 2002.05202). Its width is rounded up to a multiple of 8.
    """

    config: ViTConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        width, dtype = self.config.width, self.config.dtype
        hidden = (2 * self.config.mlp_ratio * width // 3 + 7) // 8 * 8
        both = nn.Dense(2 * hidden, dtype=dtype, name="weights_in")(x_BLD)
        gate, value = jnp.split(both, 2, axis=-1)
        down = nn.Dense(width, dtype=dtype, name="weights_out")
        return down(nn.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned factor for every feature (Touvron et al. 2021, arXiv 2103.17239)."""

    dtype: str

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, x_BLD.shape[-1:])
        return x_BLD * scale.astype(self.dtype)


def _scaled(config: ViTConfig, x_BLD: Array, name: str) -> Array:
    return LayerScale(config.dtype, name=name)(x_BLD) if config.layer_scale else x_BLD


def _norm(config: ViTConfig, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.epsilon, dtype=config.dtype, name=name)


class Block(nn.Module):
    """A pre-norm transformer block, which attends to the first `tokens`."""

    config: ViTConfig
    tokens: int

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        config, mlp = self.config, GatedMLP if self.config.gated else MLP
        normed = _norm(config, "norm_1")(x_BLD)
        mixed = Attention(config, self.tokens, name="attention")(normed)
        x_BLD = x_BLD + _scaled(config, mixed, "scale_1")
        normed = _norm(config, "norm_2")(x_BLD)
        return x_BLD + _scaled(config, mlp(config, name="mlp")(normed), "scale_2")


class ViT(nn.Module):
    """Images `[B, H, W, C]` (float, in the range of training) to logits `[B, K]`.

    `model(model(images, stop=i), start=i)` is `model(images)`, in two parts.
    """

    config: ViTConfig

    @nn.compact
    def __call__(
        self, inputs: Array, *, start: int = 0, stop: int | None = None
    ) -> Array:
        """Apply the model, or some of its blocks.

        Args:
          inputs: images; with a `start`, the hidden states `[B, L, D]` before it.
          start: the first block that is applied.
          stop: the block before which to stop. Default: none, the head is applied.

        Returns:
          Logits; with a `stop`, the hidden states before it, in `config.dtype`.
        """
        config = self.config
        x_BLD = inputs if start else self._embedded(inputs)
        tokens = x_BLD.shape[1]
        x_BLD = _even(x_BLD, config.attention)
        block = nn.remat(Block) if config.remat else Block
        for index in range(start, config.depth if stop is None else stop):
            x_BLD = block(config, tokens, name=f"block_{index}")(x_BLD)
        x_BLD = x_BLD[:, :tokens]
        if stop is not None:
            return x_BLD
        pooled_BD = _pooled(_norm(config, "norm")(x_BLD), config.pooling)
        return nn.Dense(config.classes, dtype=config.dtype, name="head")(pooled_BD)

    def _embedded(self, image_BHWC: Array) -> Array:
        """The class token and the patches of images, with their positions."""
        patch, width = (self.config.patch,) * 2, self.config.width
        dtype = jnp.dtype(self.config.dtype)
        embed = nn.Conv(
            width,
            patch,
            strides=patch,
            padding="VALID",
            dtype=dtype,
            name="embed",
            conv_general_dilated=matmul_of_patches,
        )
        patches_BHWD = embed(image_BHWC)
        batch, rows, columns, _ = patches_BHWD.shape
        x_BLD = patches_BHWD.reshape(batch, -1, width)
        token = self.param("token", nn.initializers.zeros, (1, 1, width))
        tokens = jnp.tile(token.astype(dtype), (batch, 1, 1))
        x_BLD = jnp.concatenate([tokens, x_BLD], 1)
        return x_BLD + self._positions((rows, columns)).astype(dtype)

    def _positions(self, grid: Grid) -> Array:
        """The position embeddings of an image's grid."""
        learned = self.config.grid or grid
        shape = 1, 1 + math.prod(learned), self.config.width
        position = self.param("position", nn.initializers.normal(0.02), shape)
        return positions.fitted(position, learned, grid)


def matmul_of_patches(
    image_BHWC: Array,
    kernel_PPCD: Array,
    *_others: Any,
    precision: Any = None,
    **__: Any,
) -> Array:
    """The convolution whose windows do not overlap, as one matrix product.

    As a convolution it took 3 % of a round of ViT-B/16 on an H200.

    Args:
      image_BHWC: images; what is beyond their whole patches is left out.
      kernel_PPCD: of square patches.
      precision: of the product.
    """
    side, _, colours, width = kernel_PPCD.shape
    batch, height, across, _ = image_BHWC.shape
    rows, columns = height // side, across // side
    whole = image_BHWC[:, : rows * side, : columns * side]
    split = whole.reshape(batch, rows, side, columns, side, colours)
    patches = split.swapaxes(2, 3).reshape(batch, rows, columns, -1)
    kernel = kernel_PPCD.reshape(side * side * colours, width)
    return jnp.matmul(patches, kernel, precision=precision)


def frozen_blocks(config: ViTConfig, trained: Iterable[str]) -> int:
    """The number of first blocks that no trained module, by path, is in or before."""
    return layers_before(trained, "block", depth=config.depth, last=("norm", "head"))


def layers_before(
    trained: Iterable[str], layer: str, *, depth: int, last: Sequence[str]
) -> int:
    """The number of first layers that no trained module is in or before.

    Args:
      trained: paths of modules.
      layer: what layer `i` is called, `layer_i`, without the number.
      depth: the number of layers.
      last: modules that read the last layer. What is neither a layer nor one of these
        is before the first one.
    """

    def place(path: str) -> int:
        name = path.split("/")[0]
        numbered = re.fullmatch(rf"{layer}_(\d+)", name)
        return int(numbered[1]) if numbered else depth * (name in last)

    return min(map(place, trained), default=depth)


def head_inputs(config: ViTConfig) -> int:
    """The number of features that the head reads."""
    return config.width * (2 if config.pooling == "token_and_mean" else 1)


def _pooled(x_BLD: Array, pooling: Pooling) -> Array:
    token_BD = x_BLD[:, 0]
    if pooling == "token":
        return token_BD
    return jnp.concatenate([token_BD, x_BLD[:, 1:].mean(1)], -1)


# --- Hugging Face files --------------------------------------------------------------

_BLOCK = "vit.encoder.layer.*"


def block_dense(
    ours: str,
    theirs: str,
    kernel: Conversion = LINEAR,
    bias: Conversion = SAME,
    *,
    block: str = _BLOCK,
) -> tuple[Rule, Rule]:
    """The rules of a block's dense layer; `block` is the block's name in the files."""
    return (
        Rule(f"block_*/{ours}/kernel", f"{block}.{theirs}.weight", kernel),
        Rule(f"block_*/{ours}/bias", f"{block}.{theirs}.bias", bias),
    )


def layer_norm(ours: str, theirs: str) -> tuple[Rule, Rule]:
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
        *block_dense("attention/query", "attention.attention.query", LINEAR, FLAT),
        *block_dense("attention/key", "attention.attention.key", LINEAR, FLAT),
        *block_dense("attention/value", "attention.attention.value", LINEAR, FLAT),
        *block_dense("attention/out", "attention.output.dense", FROM_HEADS),
        *block_dense("mlp/up", "intermediate.dense"),
        *block_dense("mlp/down", "output.dense"),
        *layer_norm("block_*/norm_1", f"{_BLOCK}.layernorm_before"),
        *layer_norm("block_*/norm_2", f"{_BLOCK}.layernorm_after"),
        *layer_norm("norm", "vit.layernorm"),
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
      side: of its images, in pixels, if `config` has no grid.
      colours: of its images.
      names: of its classes.
    """
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "image_size": described_side(config, side),
        "num_channels": colours,
        "patch_size": config.patch,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_ratio * config.width,
        "hidden_act": config.activation,
        "layer_norm_eps": config.epsilon,
        "qkv_bias": True,
        **described_names(names),
    }


def described_side(config: ViTConfig, side: int) -> int:
    """The side of the images that positions are learned for."""
    return config.grid[0] * config.patch if config.grid else side


def described_classes(description: Mapping[str, Any]) -> int:
    """The classes of a checkpoint's head, of which transformers has two by default."""
    return len(description.get("id2label") or ()) or 2


def described_names(names: Sequence[str]) -> dict[str, Any]:
    """The names of classes as a `config.json` has them."""
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def config_of(
    description: Mapping[str, Any],
    *,
    classes: int | None = None,
    layers: int | None = None,
) -> ViTConfig:
    """The configuration that a `config.json` describes.

    Args:
      description: the object in the file.
      classes: of a new head; default: those of the checkpoint's head.
      layers: use the first blocks only, and the last norm after them; default: all.

    Raises:
      ValueError: it describes another kind of model, impossible sizes, or fewer layers.
    """
    given: dict[str, Any] = {
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "image_size": 224,
        **description,
    }
    _check_kind(given)
    check_transformer(given)
    _check_width(given)
    return ViTConfig(
        patch=given["patch_size"],
        width=given["hidden_size"],
        depth=first_layers(given, layers),
        heads=given["num_attention_heads"],
        mlp_ratio=given["intermediate_size"] // given["hidden_size"],
        classes=classes or described_classes(given),
        epsilon=given["layer_norm_eps"],
        activation=given["hidden_act"],
        grid=positions.grid_of(given),
    )


def _check_kind(given: Mapping[str, Any]) -> None:
    kind = given.get("model_type")
    if kind == "deit":
        raise ValueError(
            "model_type is 'deit', whose distillation token is not supported; use a "
            "DeiT without one, whose model_type is vit"
        )
    if kind != "vit" or given.get("qkv_bias") is False:
        raise ValueError(f"model_type is {kind!r}: it must be vit, with biases")


def _check_width(given: Mapping[str, Any]) -> None:
    weights.check_sizes(given, "intermediate_size")
    if given["intermediate_size"] % given["hidden_size"]:
        raise ValueError("intermediate_size is not a multiple of hidden_size")


def check_transformer(given: Mapping[str, Any]) -> None:
    """Raise `ValueError` for sizes or an activation that no ViT here has."""
    activation = given["hidden_act"]
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"hidden_act is {activation!r}: it must be one of {known}")
    sizes = "hidden_size", "num_hidden_layers", "num_attention_heads"
    weights.check_sizes(given, "patch_size", *sizes)
    weights.check_numbers(given, "layer_norm_eps")
    if given["hidden_size"] % given["num_attention_heads"]:
        raise ValueError("hidden_size is not a multiple of num_attention_heads")


def first_layers(given: Mapping[str, Any], layers: int | None) -> int:
    """The number of blocks to use of those that a `config.json` describes.

    Args:
      given: the content of a `config.json`.
      layers: the number that is asked for; default: all.

    Raises:
      ValueError: the model has fewer.
    """
    depth = given["num_hidden_layers"]
    if layers is not None and not 1 <= layers <= depth:
        raise ValueError(f"layers is {layers}: it must be between 1 and {depth}")
    return layers or depth
