"""CLIP's image encoder in Flax Linen, with a zero-shot head, and its weights' names.

Letters: `B` batch, `H` `W` image sides, `D` width, `E` embedding, `K` classes.

Radford et al. 2021 (arXiv 2103.00020). The head's kernel holds the embeddings of the
classes' texts, each of length one, as the merging literature has it: logits are
`s cos(image, text)`, with `s` the model's `exp(logit_scale)`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from potara_jax.models.vit import NORM, Block, ViTConfig, block_rules, norm_of
from potara_jax.models.weights import LINEAR, PATCHES, Rule, Table


@dataclasses.dataclass(frozen=True)
class ClipConfig(ViTConfig):
    """Sizes of the encoder, as a ViT's.

    embedding: of the space that images and texts share. classes: of the head; 0: none,
      and the model gives embeddings. scale: of the head's logits.
    """

    embedding: int = 512
    classes: int = 0
    scale: float = 100.0
    epsilon: float = 1e-5
    activation: str = "quick_gelu"


class Clip(nn.Module):
    """Images `[B, H, W, C]` to logits `[B, K]`, or embeddings `[B, E]`, not scaled."""

    config: ClipConfig

    @nn.compact
    def __call__(self, image_BHWC):
        c, patch = self.config, (self.config.patch,) * 2
        how = {"strides": patch, "padding": "VALID", "use_bias": False}
        embed = nn.Conv(c.width, patch, dtype=c.dtype, name="embed", **how)
        x_BLD = embed(image_BHWC).reshape(image_BHWC.shape[0], -1, c.width)
        normal = nn.initializers.normal(0.02)
        token = self.param("token", normal, (c.width,)).astype(x_BLD.dtype)
        tokens = jnp.broadcast_to(token, (x_BLD.shape[0], 1, c.width))
        x_BLD = jnp.concatenate([tokens, x_BLD], 1)
        position = self.param("position", normal, x_BLD.shape[1:])
        x_BLD = norm_of(c, "pre_norm")(x_BLD + position.astype(x_BLD.dtype))
        block = nn.remat(Block) if c.remat else Block
        for index in range(c.depth):
            x_BLD = block(c, name=f"block_{index}")(x_BLD)
        pooled_BD = norm_of(c, "norm")(x_BLD[:, 0])
        project = nn.Dense(c.embedding, use_bias=False, dtype=c.dtype, name="project")
        return self._classified(project(pooled_BD))

    def _classified(self, embedding_BE):
        c = self.config
        if not c.classes:
            return embedding_BE
        length = jnp.linalg.norm(embedding_BE, axis=-1, keepdims=True)
        head = nn.Dense(c.classes, use_bias=False, dtype=c.dtype, name="head")
        return c.scale * head(embedding_BE / length)


def zero_shot_head(texts_KE: jax.Array) -> jax.Array:
    """The head's kernel `[E, K]` from embeddings of the classes' texts `[K, E]`."""
    return (texts_KE / jnp.linalg.norm(texts_KE, axis=-1, keepdims=True)).T


# --- Hugging Face's files ------------------------------------------------------------

_IN = "vision_model"

TABLE = Table(
    (
        Rule("token", f"{_IN}.embeddings.class_embedding"),
        Rule("position", f"{_IN}.embeddings.position_embedding.weight"),
        Rule("embed/kernel", f"{_IN}.embeddings.patch_embedding.weight", PATCHES),
        *(Rule(f"pre_norm/{n}", f"{_IN}.pre_layrnorm.{theirs}") for n, theirs in NORM),
        *block_rules(
            f"{_IN}.encoder.layers.*",
            {
                "attention/query": "self_attn.q_proj",
                "attention/key": "self_attn.k_proj",
                "attention/value": "self_attn.v_proj",
                "attention/out": "self_attn.out_proj",
                "mlp/up": "mlp.fc1",
                "mlp/down": "mlp.fc2",
                "norm_1": "layer_norm1",
                "norm_2": "layer_norm2",
            },
        ),
        *(Rule(f"norm/{n}", f"{_IN}.post_layernorm.{theirs}") for n, theirs in NORM),
        Rule("project/kernel", "visual_projection.weight", LINEAR),
    ),
    ignored=("*.position_ids", "text_*", "logit_scale"),
)


def config_of(found: dict, *, classes: int = 0, scale: float = 100.0) -> ClipConfig:
    """The image encoder's configuration in a `config.json` of CLIP.

    scale: `exp` of the checkpoint's `logit_scale`. Raises `ValueError` for another kind
    of model.
    """
    kind = found.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise ValueError(f"model_type is {kind!r}: it must be clip")
    own = found.get("vision_config", found)
    return ClipConfig(
        patch=own.get("patch_size", 32),
        width=own.get("hidden_size", 768),
        depth=own.get("num_hidden_layers", 12),
        heads=own.get("num_attention_heads", 12),
        mlp_ratio=own.get("intermediate_size", 3072) // own.get("hidden_size", 768),
        classes=classes,
        epsilon=own.get("layer_norm_eps", 1e-5),
        activation=own.get("hidden_act", "quick_gelu"),
        embedding=found.get("projection_dim", own.get("projection_dim", 512)),
        scale=scale,
    )
