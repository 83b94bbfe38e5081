"""Llama 3, and its relatives Qwen2 and Qwen3, in Flax Linen, with scanned layers.

Dimension letters: `B` batch, `L` tokens, `S` slots of the cache, `D` width, `N` query
heads, `K` key heads, `H` width of a head, `V` vocabulary, `A` answers.

Touvron et al. 2023 (arXiv 2302.13971), Llama team 2024 (arXiv 2407.21783): RMS norms,
rotary positions, grouped-query attention, SwiGLU. Modules have Hugging Face's names, so
that an adapter's path is PEFT's. One scanned module, `layers`, holds all layers; its
arrays have a leading axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from potara_jax.models import weights
from potara_jax.models.weights import LINEAR, Rule, Table

Array = jax.Array


FROZEN = "frozen_layers"  # the module that no adapter is in


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How `rope_type: llama3` slows the slow rotations, for a longer context.

    A rotation that takes more than `original / low` tokens is slowed by `factor`; one
    that takes fewer than `original / high` stays; between the two, it is interpolated.

    Attributes:
      factor: by which the slow rotations are slowed.
      low: turns in the original context, of the fastest rotation that is slowed fully.
      high: turns in the original context, of the slowest rotation that stays.
      original: the context of the pre-training, in tokens.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and variants of a Llama.

    Attributes:
      vocabulary: number of tokens.
      width: of the residual stream.
      hidden: width of the SwiGLU.
      depth: number of layers.
      heads: number of query heads.
      key_heads: number of key and value heads, which the query heads share.
      head_width: default `width / heads`.
      epsilon: added to the mean square by the norms.
      theta: the base of the rotary positions' periods.
      scaling: of the rotary positions, for a longer context.
      tied: use the embedding as the output head too.
      biases: give query, key and value biases (Qwen2).
      head_norms: normalise query and key (Qwen3).
      context: the longest sequence of the training, in tokens.
      frozen: number of first layers that are a module of their own, `frozen_layers`,
        which no adapter is in.
      dtype: of the activations; parameters keep their dtypes.
      remat: recompute a layer's activations for the gradient.
      attention: `xla`, or `cudnn` for flash attention on a GPU in bfloat16. The latter
        has no forward-mode derivatives, so it serves training and decoding, not Hermite
        weights.
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
    frozen: int = 0
    dtype: str = "float32"
    remat: bool = False
    attention: Literal["xla", "cudnn"] = "xla"

    @property
    def head(self) -> int:
        """The width of a head."""
        return self.head_width or self.width // self.heads


class Cache(NamedTuple):
    """Keys and values of the tokens read so far, `[layers, B, S, K, H]`."""

    keys: Array
    values: Array


def empty_cache(config: LlamaConfig, batch: int, slots: int) -> Cache:
    """A cache with room for `slots` tokens of each sequence."""
    shape = config.depth, batch, slots, config.key_heads, config.head
    return Cache(*(jnp.zeros(shape, config.dtype) for _ in range(2)))


# --- Rotary positions ----------------------------------------------------------------


def frequencies(config: LlamaConfig) -> np.ndarray:
    """Radians per token by which each pair of a head rotates, `[H / 2]`, float32."""
    exponents = np.arange(0, config.head, 2, dtype=np.float64) / config.head
    plain = config.theta**-exponents
    scaling = config.scaling
    if scaling is None:
        return plain.astype(np.float32)
    turns = scaling.original * plain / (2 * math.pi)
    keep = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return (keep * plain + (1 - keep) * plain / scaling.factor).astype(np.float32)


def rotate(x_BLNH: Array, position_BL: Array, frequency: np.ndarray) -> Array:
    """Heads rotated by their positions; a pair is one number from each half of a head.

    Args:
      x_BLNH: queries or keys.
      position_BL: of the tokens.
      frequency: `[H / 2]`, see `frequencies`.
    """
    angle = position_BL[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x_BLNH.astype(jnp.float32), 2, -1)
    turned = first * cos - second * sin, second * cos + first * sin
    return jnp.concatenate(turned, -1).astype(x_BLNH.dtype)


# --- Layers --------------------------------------------------------------------------


class Placement(NamedTuple):
    """Where tokens stand, and which other tokens each attends to.

    Attributes:
      position: of every token, `[B, L]`.
      mask: `[B, 1, L, L or S]`, or None for plain causal attention.
    """

    position: Array
    mask: Array | None


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x_BLD: Array, placement: Placement, cache: Cache | None
    ) -> tuple[Array, Cache | None]:
        c, position, mask = self.config, placement.position, placement.mask
        query, key, value = (
            self._heads(x_BLD, name, number)
            for name, number in (("q", c.heads), ("k", c.key_heads), ("v", c.key_heads))
        )
        if c.head_norms:
            query, key = _norm(c, "q_norm")(query), _norm(c, "k_norm")(key)
        query = rotate(query, position, frequencies(c))
        key = rotate(key, position, frequencies(c))
        if cache is not None:
            cache = _with_tokens(cache, key, value, position)
            key, value = cache
        mixed = jax.nn.dot_product_attention(
            query,
            key,
            value,
            mask=mask,
            is_causal=mask is None,
            implementation=c.attention,
        )
        flat = mixed.reshape(*mixed.shape[:2], -1)
        return _dense(c, c.width, "o_proj")(flat), cache

    def _heads(self, x_BLD: Array, name: str, number: int) -> Array:
        c = self.config
        project = _dense(c, number * c.head, f"{name}_proj", bias=c.biases)
        return project(x_BLD).reshape(*x_BLD.shape[:2], number, c.head)


def _with_tokens(cache: Cache, key: Array, value: Array, position: Array) -> Cache:
    """A layer's cache with new keys and values at their positions."""
    put = jax.vmap(lambda old, new, at: old.at[at].set(new.astype(old.dtype)))
    return Cache(put(cache.keys, key, position), put(cache.values, value, position))


class MLP(nn.Module):
    """SwiGLU."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        c = self.config
        gate = nn.silu(_dense(c, c.hidden, "gate_proj")(x_BLD))
        return _dense(c, c.width, "down_proj")(
            gate * _dense(c, c.hidden, "up_proj")(x_BLD)
        )


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x_BLD: Array, placement: Placement, cache: Cache | None
    ) -> tuple[Array, Cache | None]:
        c = self.config
        normed = _norm(c, "input_layernorm")(x_BLD)
        mixed, cache = Attention(c, name="self_attn")(normed, placement, cache)
        x_BLD = x_BLD + mixed
        normed = _norm(c, "post_attention_layernorm")(x_BLD)
        return x_BLD + MLP(c, name="mlp")(normed), cache


def _dense(
    config: LlamaConfig, features: int, name: str, *, bias: bool = False
) -> nn.Dense:
    return nn.Dense(features, use_bias=bias, dtype=config.dtype, name=name)


def _norm(config: LlamaConfig, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=config.epsilon, dtype=config.dtype, name=name)


# --- The model -----------------------------------------------------------------------


class Text(NamedTuple):
    """Sequences of tokens.

    Attributes:
      tokens: `[B, L]`, padded at the end.
      at: `[B, A]`, the positions whose next token is predicted.
      segment: `[B, L]`, the number of the text that a token belongs to, where several
        texts share a row. A token attends to earlier ones of its text, and of text 0,
        which all others continue. Default: each row is one text.
      hidden: `[B, L, D]`, what the frozen layers compute of the tokens, if it is known.
    """

    tokens: Array
    at: Array
    segment: Array | None = None
    hidden: Array | None = None


class Llama(nn.Module):
    """Texts to the logits of the next token, `[B, A, V]`, float32."""

    config: LlamaConfig

    def setup(self) -> None:
        """Make the embedding, the layers, the last norm, and the head."""
        c = self.config
        self.embed_tokens = nn.Embed(c.vocabulary, c.width, dtype=c.dtype)
        if c.frozen:
            self.frozen_layers = _scanned(c, c.frozen)
        self.layers = _scanned(c, c.depth - c.frozen)
        self.norm = nn.RMSNorm(epsilon=c.epsilon, dtype=c.dtype)
        if not c.tied:
            self.lm_head = nn.Dense(c.vocabulary, use_bias=False, dtype=c.dtype)

    def __call__(self, text: Text) -> Array:
        """Read whole texts."""
        x_BLD = self.below(text) if text.hidden is None else text.hidden
        x_BLD, _ = self.layers(x_BLD, _placement(text), None)
        x_BAD = jnp.take_along_axis(x_BLD, text.at[..., None], 1)
        return self._logits(x_BAD)

    def below(self, text: Text) -> Array:
        """What the frozen layers compute of whole texts, `[B, L, D]`."""
        x_BLD = self._embedded(text.tokens)
        if self.config.frozen:
            x_BLD, _ = self.frozen_layers(x_BLD, _placement(text), None)
        return x_BLD

    def read(
        self, tokens: Array, position: Array, cache: Cache, last: Array
    ) -> tuple[Array, Cache]:
        """Read tokens into the cache.

        Args:
          tokens: `[B, L]`.
          position: `[B, L]`, of the tokens, which are their slots in the cache.
          cache: of the tokens read before.
          last: `[B]`, the index of the token whose logits are computed; those of all
            tokens of a long prompt would not fit a device.

        Returns:
          The logits `[B, V]` after each `last` token, and the cache.
        """
        slots = jnp.arange(cache.keys.shape[2])
        mask = slots <= position[:, None, :, None]
        placement = Placement(position, mask)
        x_BLD, cache = self._all_layers(self._embedded(tokens), placement, cache)
        x_BAD = jnp.take_along_axis(x_BLD, last[:, None, None], 1)
        return self._logits(x_BAD)[:, 0], cache

    def _all_layers(
        self, x_BLD: Array, placement: Placement, cache: Cache
    ) -> tuple[Array, Cache]:
        """Apply the frozen and the other layers, each with its part of the cache."""
        frozen = self.config.frozen
        if not frozen:
            return self.layers(x_BLD, placement, cache)
        first, rest = (Cache(*(x[cut] for x in cache)) for cut in _cuts(frozen))
        x_BLD, first = self.frozen_layers(x_BLD, placement, first)
        x_BLD, rest = self.layers(x_BLD, placement, rest)
        return x_BLD, jax.tree.map(lambda *x: jnp.concatenate(x), first, rest)

    def _embedded(self, tokens: Array) -> Array:
        return self.embed_tokens(tokens.astype(jnp.int32))

    def _logits(self, x_BLD: Array) -> Array:
        x_BLD = self.norm(x_BLD)
        head = self.embed_tokens.attend if self.config.tied else self.lm_head
        return head(x_BLD).astype(jnp.float32)


def _scanned(config: LlamaConfig, number: int) -> Any:
    """Some layers as one module, which takes and returns a stack of caches."""
    layer = nn.remat(Layer, prevent_cse=False) if config.remat else Layer
    scanned: Any = nn.scan(
        layer,
        variable_axes={"params": 0, "lora": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0),
        out_axes=0,
        length=number,
    )
    return scanned(config)


def _cuts(frozen: int) -> tuple[slice, slice]:
    """Where the frozen and the other layers are in a stack of all."""
    return slice(frozen), slice(frozen, None)


def with_frozen(params: Mapping[str, Any], frozen: int) -> dict[str, Any]:
    """A Llama's parameters with its first layers as a module of their own.

    Args:
      params: as `LlamaConfig(frozen=0)` has them.
      frozen: the number of first layers.
    """
    if not frozen:
        return dict(params)
    first, rest = (
        jax.tree.map(lambda x, cut=cut: x[cut], params["layers"])
        for cut in _cuts(frozen)
    )
    return {**params, FROZEN: first, "layers": rest}


def _placement(text: Text) -> Placement:
    index = jnp.arange(text.tokens.shape[1])
    if text.segment is None:
        return Placement(jnp.broadcast_to(index, text.tokens.shape), None)
    query, key = text.segment[:, :, None], text.segment[:, None, :]
    attended = ((query == key) | (key == 0)) & (index[:, None] >= index)
    return Placement(attended.sum(-1) - 1, attended[:, None])


# --- Hugging Face files --------------------------------------------------------------

_LAYER = "model.layers.*"


def _kernel_and_bias(block: str, name: str) -> tuple[Rule, Rule]:
    """The rules of a layer's projection."""
    ours, theirs = f"layers/{block}/{name}", f"{_LAYER}.{block}.{name}"
    return (
        Rule(f"{ours}/kernel", f"{theirs}.weight", LINEAR),
        Rule(f"{ours}/bias", f"{theirs}.bias"),
    )


TABLE = Table(
    (
        Rule("embed_tokens/embedding", "model.embed_tokens.weight"),
        Rule("norm/scale", "model.norm.weight"),
        Rule("lm_head/kernel", "lm_head.weight", LINEAR),
        Rule("layers/input_layernorm/scale", f"{_LAYER}.input_layernorm.weight"),
        Rule(
            "layers/post_attention_layernorm/scale",
            f"{_LAYER}.post_attention_layernorm.weight",
        ),
        *_kernel_and_bias("self_attn", "q_proj"),
        *_kernel_and_bias("self_attn", "k_proj"),
        *_kernel_and_bias("self_attn", "v_proj"),
        *_kernel_and_bias("self_attn", "o_proj"),
        *_kernel_and_bias("mlp", "gate_proj"),
        *_kernel_and_bias("mlp", "up_proj"),
        *_kernel_and_bias("mlp", "down_proj"),
        Rule("layers/self_attn/q_norm/scale", f"{_LAYER}.self_attn.q_norm.weight"),
        Rule("layers/self_attn/k_norm/scale", f"{_LAYER}.self_attn.k_norm.weight"),
    ),
    ignored=("*.rotary_emb.inv_freq",),
)


def table_of(config: LlamaConfig) -> Table:
    """Where the parameters of a model are stored."""
    frozen = [
        rule._replace(ours=f"frozen_{rule.ours}")
        for rule in TABLE.rules
        if rule.ours.startswith("layers/")
    ]
    others = [
        rule._replace(first=config.frozen) if "*" in rule.theirs else rule
        for rule in TABLE.rules
    ]
    return TABLE._replace(rules=(*others, *(frozen if config.frozen else ())))


class _Variant(NamedTuple):
    """What a `model_type` adds to Llama's attention."""

    biases: bool = False
    head_norms: bool = False


_VARIANTS = {
    "llama": _Variant(),
    "qwen2": _Variant(biases=True),
    "qwen3": _Variant(head_norms=True),
}


def description_of(config: LlamaConfig) -> dict[str, Any]:
    """The `config.json` of a model; `config_of` reads it."""
    variant = _Variant(config.biases, config.head_norms)
    kind = next(name for name, known in _VARIANTS.items() if known == variant)
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


def config_of(description: Mapping[str, Any]) -> LlamaConfig:
    """The configuration that a `config.json` describes.

    Args:
      description: the object in the file.

    Raises:
      ValueError: it describes another kind of model, of rotary positions or of
        attention, or impossible sizes.
    """
    variant = _variant(description)
    heads, key_heads = _heads(description)
    theta = _theta(description)
    weights.check_sizes(description, *_SIZES)
    numbers = {**description, "rope_theta": theta}
    weights.check_numbers(numbers, "rms_norm_eps", "rope_theta")
    return LlamaConfig(
        vocabulary=description["vocab_size"],
        width=description["hidden_size"],
        hidden=description["intermediate_size"],
        depth=description["num_hidden_layers"],
        heads=heads,
        key_heads=key_heads,
        head_width=description.get("head_dim"),
        epsilon=description["rms_norm_eps"],
        theta=float(theta),
        scaling=_scaling(description),
        tied=description.get("tie_word_embeddings", False),
        biases=variant.biases,
        head_norms=variant.head_norms,
        context=description["max_position_embeddings"],
    )


_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "max_position_embeddings",
)


def _variant(description: Mapping[str, Any]) -> _Variant:
    kind = description.get("model_type")
    if kind not in _VARIANTS:
        known = ", ".join(_VARIANTS)
        raise ValueError(f"model_type is {kind!r}: it must be one of {known}")
    if description.get("hidden_act", "silu") != "silu" or description.get("mlp_bias"):
        raise ValueError("the model's MLP is not a SwiGLU without biases")
    if description.get("use_sliding_window"):
        raise ValueError("use_sliding_window is true: only full attention is supported")
    if kind == "llama" and description.get("attention_bias", False):
        raise ValueError("attention_bias is true, which is not supported for a Llama")
    return _VARIANTS[kind]


def _heads(description: Mapping[str, Any]) -> tuple[int, int]:
    """The numbers of query heads and of key heads; raises `ValueError`."""
    optional = ("num_key_value_heads", "head_dim")
    given = [name for name in optional if description.get(name) is not None]
    weights.check_sizes(description, "hidden_size", "num_attention_heads", *given)
    width, heads = description["hidden_size"], description["num_attention_heads"]
    key_heads = description["num_key_value_heads"] if optional[0] in given else heads
    if heads % key_heads:
        raise ValueError(f"{heads} heads do not share {key_heads} of keys and values")
    if "head_dim" not in given and width % heads:
        raise ValueError(f"hidden_size is {width}: {heads} heads do not divide it")
    if (description["head_dim"] if "head_dim" in given else width // heads) % 2:
        raise ValueError("a head's width is odd: rotary positions need an even one")
    return heads, key_heads


def _theta(description: Mapping[str, Any]) -> Any:
    """The base of the rotary frequencies, in the newer or the older form."""
    places = description, description.get("rope_parameters") or {}
    given = (place.get("rope_theta") for place in places)
    return next((theta for theta in given if theta is not None), 10000.0)


def _scaling(description: Mapping[str, Any]) -> RopeScaling | None:
    newer = description.get("rope_parameters") or {}
    scaling = description.get("rope_scaling") or newer
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"rope_type is {kind!r}: it must be default or llama3")
    numbers = ("factor", "low_freq_factor", "high_freq_factor")
    weights.check_numbers(scaling, *numbers, "original_max_position_embeddings")
    return RopeScaling(
        factor=scaling["factor"],
        low=scaling["low_freq_factor"],
        high=scaling["high_freq_factor"],
        original=scaling["original_max_position_embeddings"],
    )
