"""DINOv2 from Hugging Face's files: a Vision Transformer with what it adds.

Dimension letters: `D` features of a token, `K` classes.

Oquab et al. 2023 (arXiv 2304.07193). What a block's attention and MLP add is scaled
feature by feature; the largest model's MLP is a SwiGLU; a linear head `[2 D, K]` reads
the class token and the mean of the patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from potara_jax.models import positions, vit, weights
from potara_jax.models.vit import ViTConfig
from potara_jax.models.weights import (
    FLAT,
    FROM_HEADS,
    LINEAR,
    PATCHES,
    Rule,
    Table,
)

_BLOCK = "dinov2.encoder.layer.*"
_PROJECTION = "dinov2.embeddings.patch_embeddings.projection"

_dense = partial(vit.block_dense, block=_BLOCK)

TABLE = Table(
    (
        Rule("token", "dinov2.embeddings.cls_token"),
        Rule("position", "dinov2.embeddings.position_embeddings"),
        Rule("embed/kernel", f"{_PROJECTION}.weight", PATCHES),
        Rule("embed/bias", f"{_PROJECTION}.bias"),
        *_dense("attention/query", "attention.attention.query", LINEAR, FLAT),
        *_dense("attention/key", "attention.attention.key", LINEAR, FLAT),
        *_dense("attention/value", "attention.attention.value", LINEAR, FLAT),
        *_dense("attention/out", "attention.output.dense", FROM_HEADS),
        *_dense("mlp/up", "mlp.fc1"),
        *_dense("mlp/down", "mlp.fc2"),
        *_dense("mlp/weights_in", "mlp.weights_in"),
        *_dense("mlp/weights_out", "mlp.weights_out"),
        Rule("block_*/scale_1/scale", f"{_BLOCK}.layer_scale1.lambda1"),
        Rule("block_*/scale_2/scale", f"{_BLOCK}.layer_scale2.lambda1"),
        *vit.layer_norm("block_*/norm_1", f"{_BLOCK}.norm1"),
        *vit.layer_norm("block_*/norm_2", f"{_BLOCK}.norm2"),
        *vit.layer_norm("norm", "dinov2.layernorm"),
        Rule("head/kernel", "classifier.weight", LINEAR),
        Rule("head/bias", "classifier.bias"),
    ),
    ignored=("*embeddings.mask_token",),
    prefix="dinov2.",
    renamed=(  # since transformers 5.18; those before it have the names in the files
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("mlp.weights_in", "mlp.gate_proj", "mlp.up_proj"),
        ("mlp.weights_out", "mlp.down_proj"),
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
        "architectures": ["Dinov2ForImageClassification"],
        "model_type": "dinov2",
        "image_size": vit.described_side(config, side),
        "num_channels": colours,
        "patch_size": config.patch,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "hidden_act": config.activation,
        "layer_norm_eps": config.epsilon,
        "qkv_bias": True,
        "use_swiglu_ffn": config.gated,
        "use_mask_token": False,
        **vit.described_names(names),
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
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "image_size": 224,
        "patch_size": 14,
        "mlp_ratio": 4,
        **description,
    }
    _check_kind(given)
    vit.check_transformer(given)
    weights.check_sizes(given, "mlp_ratio")
    return ViTConfig(
        patch=given["patch_size"],
        width=given["hidden_size"],
        depth=vit.first_layers(given, layers),
        heads=given["num_attention_heads"],
        mlp_ratio=given["mlp_ratio"],
        classes=classes or vit.described_classes(given),
        epsilon=given["layer_norm_eps"],
        activation=given["hidden_act"],
        gated=bool(given.get("use_swiglu_ffn")),
        layer_scale=True,
        pooling="token_and_mean",
        grid=positions.grid_of(given),
    )


def _check_kind(given: Mapping[str, Any]) -> None:
    kind = given.get("model_type")
    if kind == "dinov2_with_registers":
        raise ValueError(
            "model_type is 'dinov2_with_registers', whose registers are not supported; "
            "use the DINOv2 without them"
        )
    if kind != "dinov2" or given.get("qkv_bias") is False:
        raise ValueError(f"model_type is {kind!r}: it must be dinov2, with biases")
