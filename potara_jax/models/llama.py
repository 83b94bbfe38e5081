"""Llama 3, and its relatives Qwen2 and Qwen3, in Flax Linen, with scanned layers.

Dimension letters: `B` batch, `L` tokens, `S` slots of the cache, `D` width, `N` query
heads, `K` key heads, `H` width of a head, `V` vocabulary, `A` answers.

Touvron et al. 2023 (arXiv 2302.13971), Llama team 2024 (arXiv 2407.21783): RMS norms,
rotary positions, grouped-query attention, SwiGLU. Modules have Hugging Face's names, so
that an adapter's path is PEFT's; all layers are one, `layers`, whose arrays have a
leading axis.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from potara_jax.models import weights
from potara_jax.models.weights import LINEAR, Rule, Table

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How `rope_type: llama3` slows the slow rotations, for a longer context.

    factor: by how much, where a rotation takes more than `original / low` tokens; none
      where it takes fewer than `original / high`; between them, in between.
    original: the context of the pre-training, in tokens.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and kinds of a Llama.

    vocabulary, width, depth: of the whole; hidden: of the SwiGLU.
    heads, key_heads: query heads, and the key and value heads that they share.
    head_width: default `width / heads`.
    epsilon: of the norms. theta, scaling: of the rotary positions.
    tied: whether the embedding is the head too.
    biases: of query, key and value (Qwen2). head_norms: of query and key (Qwen3).
    context: the longest sequence that it was trained on, in tokens.
    dtype: of activations; parameters keep theirs.
    remat: whether a layer's activations are computed again for the gradient.
    attention: `xla`, or `cudnn`: flash attention on a GPU, in bfloat16, which has no
      forward-mode derivatives: for training and decoding, not for Hermite weights.
    """

    vocabulary: int = 128256
    width: int = 2048
    hidden: int = 8192
    depth: int = 16
    heads: int = 32
    key_heads: int = 8
    head_width: int | None = None
    epsilon: float = 1e-5
    theta: float = 500000.0
    scaling: RopeScaling | None = None
    tied: bool = True
    biases: bool = False
    head_norms: bool = False
    context: int = 131072
    dtype: str = "float32"
    remat: bool = False
    attention: str = "xla"

    @property
    def head(self) -> int:
        """The width of a head."""
        return self.head_width or self.width // self.heads


class Cache(NamedTuple):
    """Keys and values of what was read so far, `[layers, B, S, K, H]`."""

    keys: Array
    values: Array


def empty_cache(config: LlamaConfig, batch: int, slots: int) -> Cache:
    """A cache for `slots` tokens a sequence."""
    shape = config.depth, batch, slots, config.key_heads, config.head
    return Cache(*(jnp.zeros(shape, config.dtype) for _ in range(2)))


# --- Rotary positions ----------------------------------------------------------------


def frequencies(config: LlamaConfig) -> np.ndarray:
    """Rotations a token of every pair of a head, in radians, `[H / 2]`, float32."""
    exponents = np.arange(0, config.head, 2, dtype=np.float64) / config.head
    plain = config.theta**-exponents
    scaling = config.scaling
    if scaling is None:
        return plain.astype(np.float32)
    turns = scaling.original * plain / (2 * math.pi)
    keep = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return (keep * plain + (1 - keep) * plain / scaling.factor).astype(np.float32)


def rotate(x_BLNH: Array, position_BL: Array, frequency: np.ndarray) -> Array:
    """Heads turned by their positions; the pairs are the two halves of a head."""
    angle = position_BL[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x_BLNH.astype(jnp.float32), 2, -1)
    turned = first * cos - second * sin, second * cos + first * sin
    return jnp.concatenate(turned, -1).astype(x_BLNH.dtype)


# --- Layers --------------------------------------------------------------------------


class Where(NamedTuple):
    """Where tokens stand: `position` `[B, L]`, and who may look at whom.

    `mask`: `[B, 1, L, L or S]`, or None where that is causal and nothing else.
    """

    position: Array
    mask: Array | None


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x_BLD, where: Where, cache: Cache | None):
        c = self.config
        query, key, value = (
            self._heads(x_BLD, name, number)
            for name, number in (("q", c.heads), ("k", c.key_heads), ("v", c.key_heads))
        )
        if c.head_norms:
            query, key = _norm(c, "q_norm")(query), _norm(c, "k_norm")(key)
        turn = lambda x: rotate(x, where.position, frequencies(c))
        query, key = turn(query), turn(key)
        if cache is not None:
            cache = _written(cache, key, value, where.position)
            key, value = cache
        how = {"implementation": c.attention, "is_causal": where.mask is None}
        mixed = jax.nn.dot_product_attention(query, key, value, mask=where.mask, **how)
        flat = mixed.reshape(*mixed.shape[:2], -1)
        return _dense(c, c.width, "o_proj")(flat), cache

    def _heads(self, x_BLD, name: str, number: int) -> Array:
        c = self.config
        project = _dense(c, number * c.head, f"{name}_proj", bias=c.biases)
        return project(x_BLD).reshape(*x_BLD.shape[:2], number, c.head)


def _written(cache: Cache, key, value, position) -> Cache:
    """The layer's cache with new keys and values at their positions."""
    put = jax.vmap(lambda old, new, at: old.at[at].set(new.astype(old.dtype)))
    return Cache(put(cache.keys, key, position), put(cache.values, value, position))


class MLP(nn.Module):
    """SwiGLU."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x_BLD):
        c = self.config
        gate = nn.silu(_dense(c, c.hidden, "gate_proj")(x_BLD))
        return _dense(c, c.width, "down_proj")(
            gate * _dense(c, c.hidden, "up_proj")(x_BLD)
        )


class Layer(nn.Module):
    """A pre-norm layer: `(x, where, cache) -> (x, cache)`."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x_BLD, where: Where, cache: Cache | None):
        c = self.config
        normed = _norm(c, "input_layernorm")(x_BLD)
        mixed, cache = Attention(c, name="self_attn")(normed, where, cache)
        x_BLD = x_BLD + mixed
        normed = _norm(c, "post_attention_layernorm")(x_BLD)
        return x_BLD + MLP(c, name="mlp")(normed), cache


def _dense(config, features: int, name: str, *, bias: bool = False) -> nn.Dense:
    return nn.Dense(features, use_bias=bias, dtype=config.dtype, name=name)


def _norm(config, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=config.epsilon, dtype=config.dtype, name=name)


# --- The model -----------------------------------------------------------------------


class Text(NamedTuple):
    """Sequences that are read at once.

    `tokens` `[B, L]`, padded behind. `at` `[B, A]`: the positions whose next token is
    asked for. `segment` `[B, L]`: which of the texts that share a row a token is of. It
    sees those before it of its own text, and of text 0, which all others follow;
    default: a row is one text.
    """

    tokens: Array
    at: Array
    segment: Array | None = None


class Llama(nn.Module):
    """Texts to the logits of the next token, `[B, A, V]`, float32."""

    config: LlamaConfig

    def setup(self):
        """The embedding, the layers, the last norm, and the head."""
        c = self.config
        self.embed_tokens = nn.Embed(c.vocabulary, c.width, dtype=c.dtype)
        layer = nn.remat(Layer, prevent_cse=False) if c.remat else Layer
        self.layers = nn.scan(
            layer,
            variable_axes={"params": 0, "lora": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            out_axes=0,
            length=c.depth,
        )(c)
        self.norm = nn.RMSNorm(epsilon=c.epsilon, dtype=c.dtype)
        if not c.tied:
            self.lm_head = nn.Dense(c.vocabulary, use_bias=False, dtype=c.dtype)

    def __call__(self, text: Text) -> Array:
        """Read whole texts."""
        x_BLD, _ = self.layers(self._embedded(text.tokens), _standing(text), None)
        x_BAD = jnp.take_along_axis(x_BLD, text.at[..., None], 1)
        return self._logits(x_BAD)

    def read(self, tokens: Array, position: Array, cache: Cache, last: Array):
        """Read tokens `[B, L]` at their positions.

        Gives the logits `[B, V]` after the token at place `last` `[B]` of each, since
        those of a long prompt would not fit a device; and the cache.
        """
        slots = jnp.arange(cache.keys.shape[2])
        mask = slots <= position[:, None, :, None]
        where = Where(position, mask)
        x_BLD, cache = self.layers(self._embedded(tokens), where, cache)
        x_BAD = jnp.take_along_axis(x_BLD, last[:, None, None], 1)
        return self._logits(x_BAD)[:, 0], cache

    def _embedded(self, tokens) -> Array:
        return self.embed_tokens(tokens.astype(jnp.int32))

    def _logits(self, x_BLD) -> Array:
        x_BLD = self.norm(x_BLD)
        head = self.embed_tokens.attend if self.config.tied else self.lm_head
        return head(x_BLD).astype(jnp.float32)


def _standing(text: Text) -> Where:
    place = jnp.arange(text.tokens.shape[1])
    if text.segment is None:
        return Where(jnp.broadcast_to(place, text.tokens.shape), None)
    reader, read = text.segment[:, :, None], text.segment[:, None, :]
    seen = ((reader == read) | (read == 0)) & (place[:, None] >= place)
    return Where(seen.sum(-1) - 1, seen[:, None])


# --- Hugging Face's files ------------------------------------------------------------

_LAYER = "model.layers.*"
_KERNELS = {
    "self_attn": "q_proj k_proj v_proj o_proj",
    "mlp": "gate_proj up_proj down_proj",
}
_LAYER_NORMS = "input_layernorm", "post_attention_layernorm"

TABLE = Table(
    (
        Rule("embed_tokens/embedding", "model.embed_tokens.weight"),
        Rule("norm/scale", "model.norm.weight"),
        Rule("lm_head/kernel", "lm_head.weight", LINEAR),
        *(Rule(f"layers/{n}/scale", f"{_LAYER}.{n}.weight") for n in _LAYER_NORMS),
        *(
            rule
            for block, names in _KERNELS.items()
            for name in names.split()
            for rule in (
                Rule(
                    f"layers/{block}/{name}/kernel",
                    f"{_LAYER}.{block}.{name}.weight",
                    LINEAR,
                ),
                Rule(f"layers/{block}/{name}/bias", f"{_LAYER}.{block}.{name}.bias"),
            )
        ),
        *(
            Rule(f"layers/self_attn/{n}/scale", f"{_LAYER}.self_attn.{n}.weight")
            for n in ("q_norm", "k_norm")
        ),
    ),
    ignored=("*.rotary_emb.inv_freq",),
)

_KINDS = {
    "llama": {},
    "qwen2": {"biases": True},
    "qwen3": {"head_norms": True},
}


def described(config: LlamaConfig) -> dict:
    """The `config.json` of a model; `config_of` reads it."""
    told = ("biases", config.biases), ("head_norms", config.head_norms)
    kind = next(k for k, own in _KINDS.items() if own == {n: x for n, x in told if x})
    scaling = config.scaling and {
        "rope_type": "llama3",
        "factor": config.scaling.factor,
        "low_freq_factor": config.scaling.low,
        "high_freq_factor": config.scaling.high,
        "original_max_position_embeddings": config.scaling.original,
    }
    return {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_heads,
        "head_dim": config.head,
        "hidden_act": "silu",
        "rms_norm_eps": config.epsilon,
        "rope_theta": config.theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.context,
    }


def config_of(found: dict) -> LlamaConfig:
    """The configuration that a `config.json` states.

    Raises `ValueError` for another kind of model, of rotary positions, or of attention.
    """
    kind = found.get("model_type")
    if kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise ValueError(f"model_type is {kind!r}: it must be one of {known}")
    if found.get("hidden_act", "silu") != "silu" or found.get("mlp_bias"):
        raise ValueError("the model's MLP is no SwiGLU without biases")
    if found.get("use_sliding_window"):
        raise ValueError("use_sliding_window is true: only full attention is there")
    rope = found.get("rope_parameters") or {}
    scaling = found.get("rope_scaling") or rope
    told = (each.get("rope_theta") for each in (found, rope))
    theta = next((each for each in told if each is not None), 10000.0)
    heads, key_heads = _heads(found)
    weights.check_sizes(found, *_SIZES)
    weights.check_numbers(found | {"rope_theta": theta}, "rms_norm_eps", "rope_theta")
    biases = found.get("attention_bias", False)
    if kind == "llama" and biases:
        raise ValueError("attention_bias is true: Llama's attention has none here")
    return LlamaConfig(
        vocabulary=found["vocab_size"],
        width=found["hidden_size"],
        hidden=found["intermediate_size"],
        depth=found["num_hidden_layers"],
        heads=heads,
        key_heads=key_heads,
        head_width=found.get("head_dim"),
        epsilon=found["rms_norm_eps"],
        theta=float(theta),
        scaling=_scaling(scaling),
        tied=found.get("tie_word_embeddings", False),
        context=found["max_position_embeddings"],
        **_KINDS[kind],
    )


_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    "max_position_embeddings",
)


def _heads(found: dict) -> tuple[int, int]:
    """How many heads there are of queries, and of keys; raises `ValueError`."""
    own = ("num_key_value_heads", "head_dim")
    told = [name for name in own if found.get(name) is not None]
    weights.check_sizes(found, "hidden_size", "num_attention_heads", *told)
    width, heads = found["hidden_size"], found["num_attention_heads"]
    key_heads = found["num_key_value_heads"] if own[0] in told else heads
    if heads % key_heads:
        raise ValueError(f"{heads} heads do not share {key_heads} of keys and values")
    if "head_dim" not in told and width % heads:
        raise ValueError(f"hidden_size is {width}: it has no {heads} equal heads")
    if (found["head_dim"] if "head_dim" in told else width // heads) % 2:
        raise ValueError("a head has an odd width: rotary positions turn pairs")
    return heads, key_heads


def _scaling(found: dict) -> RopeScaling | None:
    kind = found.get("rope_type", found.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"rope_type is {kind!r}: it must be default or llama3")
    numbers = ("factor", "low_freq_factor", "high_freq_factor")
    weights.check_numbers(found, *numbers, "original_max_position_embeddings")
    return RopeScaling(
        factor=found["factor"],
        low=found["low_freq_factor"],
        high=found["high_freq_factor"],
        original=found["original_max_position_embeddings"],
    )
