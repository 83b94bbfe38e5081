"""BERT and its relatives RoBERTa, XLM-R and DistilBERT, in Flax Linen.

Dimension letters: `B` batch, `L` tokens, `N` heads, `H` width of a head, `D` width, `K`
classes.

Devlin et al. 2018 (arXiv 1810.04805): token, position and type embeddings, post-norm
blocks. MiniLM, E5 and BGE are BERTs. RoBERTa (Liu et al. 2019, arXiv 1907.11692) and
XLM-R number positions from the padding token on; DistilBERT (Sanh et al. 2019, arXiv
1910.01108) has no token types.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from potara_jax.models import vit, weights
from potara_jax.models.weights import (
    FLAT,
    FROM_HEADS,
    LINEAR,
    SAME,
    Conversion,
    Rule,
    Table,
)

Array = jax.Array
Kind = Literal["bert", "roberta", "xlm-roberta", "distilbert"]
Pooling = Literal["mean", "cls", "pooler"]

# By Hugging Face's names.
ACTIVATIONS = {**vit.ACTIVATIONS, "relu": nn.relu}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes and variants of a BERT.

    Attributes:
      kind: Hugging Face's `model_type`.
      vocabulary: number of tokens.
      width: of the transformer.
      hidden: width of the MLP.
      depth: number of layers.
      heads: of each layer's attention.
      context: the longest sequence, in tokens.
      types: number of token types; with fewer than two, `Sentences.first` is not used.
      offset: number of the first position.
      epsilon: added to the variance by the norms.
      activation: of the MLP, one of `ACTIVATIONS`.
      pooling: what the head reads: the mean of all tokens, the first token (`cls`), or
        the first token after one more dense layer (`pooler`), as Hugging Face's
        classifiers do.
      classes: outputs of the head.
      dtype: of the activations; parameters keep their dtypes.
      remat: recompute a layer's activations for the gradient.
      attention: `xla`, or `cudnn` for flash attention on a GPU in bfloat16. The latter
        has no forward-mode derivatives, so it serves training, not Hermite weights.
    """

    kind: Kind = "bert"
    vocabulary: int = 30522
    width: int = 768
    hidden: int = 3072
    depth: int = 12
    heads: int = 12
    context: int = 512
    types: int = 2
    offset: int = 0
    epsilon: float = 1e-12
    activation: str = "gelu"
    pooling: Pooling = "pooler"
    classes: int = 2
    dtype: str = "float32"
    remat: bool = False
    attention: vit.Implementation = "xla"


class Sentences(NamedTuple):
    """Sentences, or pairs of them, as tokens, with the special ones. All int32.

    Attributes:
      tokens: `[B, L]`, padded at the end with any tokens.
      count: `[B]`, the tokens that are not padding.
      first: `[B]`, the tokens of the first sentence of a pair, its special ones
        included. Default: all.
    """

    tokens: Array
    count: Array
    first: Array | None = None


class Hidden(NamedTuple):
    """What some first layers make of sentences, for the other layers to read.

    Attributes:
      states: `[B, L, D]`, in the model's `dtype`.
      count: `[B]`, int32, the tokens that are not padding.
    """

    states: Array
    count: Array


# --- Layers --------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention over the tokens that are not padding."""

    config: BertConfig

    @nn.compact
    def __call__(self, x_BLD: Array, count_B: Array) -> Array:
        c = self.config
        query, key, value = (
            nn.DenseGeneral((c.heads, c.width // c.heads), dtype=c.dtype, name=name)(
                x_BLD
            )
            for name in ("query", "key", "value")
        )
        mixed = attend(query, key, value, count_B, c.attention)
        return nn.DenseGeneral(c.width, axis=(-2, -1), dtype=c.dtype, name="out")(mixed)


def attend(
    query_BLNH: Array,
    key_BLNH: Array,
    value_BLNH: Array,
    count_B: Array,
    implementation: vit.Implementation,
) -> Array:
    """Attention of all tokens to the first `count_B`, `[B, L, N, H]`."""
    return jax.nn.dot_product_attention(
        query_BLNH,
        key_BLNH,
        value_BLNH,
        key_value_seq_lengths=count_B,
        query_seq_lengths=jnp.full_like(count_B, query_BLNH.shape[1]),
        implementation=implementation,
    )


class MLP(nn.Module):
    """Two dense layers with an activation between them."""

    config: BertConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        c = self.config
        hidden = nn.Dense(c.hidden, dtype=c.dtype, name="up")(x_BLD)
        hidden = ACTIVATIONS[c.activation](hidden)
        return nn.Dense(c.width, dtype=c.dtype, name="down")(hidden)


class Layer(nn.Module):
    """A post-norm transformer layer."""

    config: BertConfig

    @nn.compact
    def __call__(self, x_BLD: Array, count_B: Array) -> Array:
        c = self.config
        mixed = Attention(c, name="attention")(x_BLD, count_B)
        x_BLD = _norm(c, "norm_1")(x_BLD + mixed)
        return _norm(c, "norm_2")(x_BLD + MLP(c, name="mlp")(x_BLD))


class Embeddings(nn.Module):
    """The normed sum of token, position and type embeddings."""

    config: BertConfig

    @nn.compact
    def __call__(self, sentences: Sentences) -> Array:
        c, length = self.config, sentences.tokens.shape[1]
        if length > c.context:
            raise ValueError(f"{length} tokens are more than the model's {c.context}")
        positions = c.offset + jnp.arange(length)
        x_BLD = _embed(c, c.vocabulary, "word")(sentences.tokens)
        x_BLD += _embed(c, c.offset + c.context, "position")(positions)
        if c.types:
            x_BLD += _embed(c, c.types, "type")(_types(sentences, c.types))
        return _norm(c, "norm")(x_BLD)


def _types(sentences: Sentences, types: int) -> Array:
    """The type of every token, `[B, L]`: 1 after the first sentence of a pair."""
    if sentences.first is None or types < 2:
        return jnp.zeros_like(sentences.tokens)
    places = jnp.arange(sentences.tokens.shape[1])
    return (places >= sentences.first[:, None]).astype(jnp.int32)


def _embed(config: BertConfig, number: int, name: str) -> nn.Embed:
    normal = nn.initializers.normal(0.02)
    return nn.Embed(
        number, config.width, dtype=config.dtype, embedding_init=normal, name=name
    )


def _norm(config: BertConfig, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.epsilon, dtype=config.dtype, name=name)


# --- The model -----------------------------------------------------------------------


class Bert(nn.Module):
    """Sentences to logits `[B, K]`.

    `model(model(sentences, stop=i), start=i)` is `model(sentences)`, in two parts.
    """

    config: BertConfig

    @nn.compact
    def __call__(
        self, inputs: Sentences | Hidden, *, start: int = 0, stop: int | None = None
    ) -> Array | Hidden:
        """Apply the model, or some of its layers.

        Args:
          inputs: sentences; with a `start`, what is hidden before it.
          start: the first layer that is applied.
          stop: the layer before which to stop. Default: none, the head is applied.

        Returns:
          Logits; with a `stop`, what is hidden before it.
        """
        c = self.config
        x_BLD = self._read(inputs)
        layer = nn.remat(Layer) if c.remat else Layer
        for index in range(start, c.depth if stop is None else stop):
            x_BLD = layer(c, name=f"layer_{index}")(x_BLD, inputs.count)
        if stop is not None:
            return Hidden(x_BLD, inputs.count)
        pooled_BD = pool(x_BLD, inputs.count, c.pooling)
        if c.pooling == "pooler":
            dense = nn.Dense(c.width, dtype=c.dtype, name="pooler")(pooled_BD)
            pooled_BD = _FAMILIES[c.kind].pooled(dense)
        return nn.Dense(c.classes, dtype=c.dtype, name="head")(pooled_BD)

    def _read(self, inputs: Sentences | Hidden) -> Array:
        """The hidden states before the first layer that is applied."""
        if isinstance(inputs, Hidden):
            return inputs.states
        return Embeddings(self.config, name="embeddings")(inputs)


def frozen_layers(config: BertConfig, trained: Iterable[str]) -> int:
    """The number of first layers that no trained module, by path, is in or before."""
    last = "pooler", "head"
    return vit.layers_before(trained, "layer", depth=config.depth, last=last)


def pool(x_BLD: Array, count_B: Array, pooling: Pooling) -> Array:
    """The mean of the tokens that are not padding, or the first one, `[B, D]`.

    The mean accumulates in float32.

    Args:
      x_BLD: the last hidden states.
      count_B: the tokens that are not padding.
      pooling: see `BertConfig`.
    """
    if pooling != "mean":
        return x_BLD[:, 0]
    real = jnp.arange(x_BLD.shape[1]) < count_B[:, None]
    total = jnp.where(real[..., None], x_BLD, 0).sum(1, dtype=jnp.float32)
    return (total / jnp.maximum(count_B, 1)[:, None]).astype(x_BLD.dtype)


# --- Hugging Face files --------------------------------------------------------------


def _dense(
    ours: str, theirs: str, kernel: Conversion = LINEAR, bias: Conversion = SAME
) -> tuple[Rule, Rule]:
    """The rules of a dense layer."""
    return (
        Rule(f"{ours}/kernel", f"{theirs}.weight", kernel),
        Rule(f"{ours}/bias", f"{theirs}.bias", bias),
    )


def _layer_norm(ours: str, theirs: str) -> tuple[Rule, Rule]:
    """The rules of a norm."""
    return (
        Rule(f"{ours}/scale", f"{theirs}.weight"),
        Rule(f"{ours}/bias", f"{theirs}.bias"),
    )


def _embeddings(prefix: str) -> tuple[Rule, ...]:
    """The rules of the embeddings; DistilBERT's files lack the types."""
    names = {
        "word": "word_embeddings",
        "position": "position_embeddings",
        "type": "token_type_embeddings",
    }
    return (
        *(
            Rule(f"embeddings/{ours}/embedding", f"{prefix}embeddings.{theirs}.weight")
            for ours, theirs in names.items()
        ),
        *_layer_norm("embeddings/norm", f"{prefix}embeddings.LayerNorm"),
    )


def _layers(names: Mapping[str, str], norms: Mapping[str, str]) -> tuple[Rule, ...]:
    """The rules of the layers."""
    conversions = {"attention/out": (FROM_HEADS, SAME)} | {
        f"attention/{name}": (LINEAR, FLAT) for name in ("query", "key", "value")
    }
    dense = (
        rule
        for ours, theirs in names.items()
        for rule in _dense(f"layer_*/{ours}", theirs, *conversions.get(ours, ()))
    )
    return (
        *dense,
        *(r for ours, theirs in norms.items() for r in _layer_norm(ours, theirs)),
    )


def _bert_rules(prefix: str) -> tuple[Rule, ...]:
    layer = f"{prefix}encoder.layer.*"
    names = {
        "attention/query": f"{layer}.attention.self.query",
        "attention/key": f"{layer}.attention.self.key",
        "attention/value": f"{layer}.attention.self.value",
        "attention/out": f"{layer}.attention.output.dense",
        "mlp/up": f"{layer}.intermediate.dense",
        "mlp/down": f"{layer}.output.dense",
    }
    norms = {
        "layer_*/norm_1": f"{layer}.attention.output.LayerNorm",
        "layer_*/norm_2": f"{layer}.output.LayerNorm",
    }
    return *_embeddings(prefix), *_layers(names, norms)


def _distilbert_rules() -> tuple[Rule, ...]:
    layer = "distilbert.transformer.layer.*"
    names = {
        "attention/query": f"{layer}.attention.q_lin",
        "attention/key": f"{layer}.attention.k_lin",
        "attention/value": f"{layer}.attention.v_lin",
        "attention/out": f"{layer}.attention.out_lin",
        "mlp/up": f"{layer}.ffn.lin1",
        "mlp/down": f"{layer}.ffn.lin2",
    }
    norms = {
        "layer_*/norm_1": f"{layer}.sa_layer_norm",
        "layer_*/norm_2": f"{layer}.output_layer_norm",
    }
    return *_embeddings("distilbert."), *_layers(names, norms)


# Parts of names in files that TensorFlow's checkpoints were converted to.
_OLDER = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
# Pooling and heads of other tasks, and positions that are no parameters.
_IGNORED = (
    "*pooler.dense.*",
    "cls.*",
    "lm_head.*",
    "vocab_*",
    "*embeddings.position_ids",
)


def _table(prefix: str, rules: Sequence[Rule], pooler: str, head: str) -> Table:
    heads = *_dense("pooler", pooler), *_dense("head", head)
    return Table((*rules, *heads), ignored=_IGNORED, prefix=prefix, older=_OLDER)


class _Family(NamedTuple):
    """A family of models.

    table: where its parameters are stored.
    pooled: the activation after the pooler's dense layer.
    model: Hugging Face's name of its classes.
    """

    table: Table
    pooled: Callable[[Array], Array]
    model: str


_BERT = _table("bert.", _bert_rules("bert."), "bert.pooler.dense", "classifier")
_ROBERTA = _table(
    "roberta.", _bert_rules("roberta."), "classifier.dense", "classifier.out_proj"
)
_DISTILBERT = _table("distilbert.", _distilbert_rules(), "pre_classifier", "classifier")
_FAMILIES: Mapping[Kind, _Family] = {
    "bert": _Family(_BERT, jnp.tanh, "Bert"),
    "roberta": _Family(_ROBERTA, jnp.tanh, "Roberta"),
    "xlm-roberta": _Family(_ROBERTA, jnp.tanh, "XLMRoberta"),
    "distilbert": _Family(_DISTILBERT, nn.relu, "DistilBert"),
}


def table_of(config: BertConfig) -> Table:
    """Where the parameters of a model are stored."""
    return _FAMILIES[config.kind].table


# What DistilBERT calls the sizes.
_DISTILBERT_NAMES = {
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "hidden_act": "activation",
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


def description_of(config: BertConfig, *, names: Sequence[str]) -> dict[str, Any]:
    """The `config.json` of a model; `config_of` reads it.

    A model that pools otherwise than Hugging Face's classifiers is described as the
    encoder alone, with its `pooling`.

    Args:
      config: its sizes.
      names: of its classes.
    """
    family, standard = _FAMILIES[config.kind], config.pooling == "pooler"
    kind = "ForSequenceClassification" if standard else "Model"
    description = {
        "architectures": [f"{family.model}{kind}"],
        "model_type": config.kind,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "hidden_act": config.activation,
        "max_position_embeddings": config.offset + config.context,
        "type_vocab_size": config.types,
        "layer_norm_eps": config.epsilon,
        "pad_token_id": max(0, config.offset - 1),
        "pooling": config.pooling,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
    other = _DISTILBERT_NAMES if config.kind == "distilbert" else {}
    return {other.get(name, name): value for name, value in description.items()}


def config_of(
    description: Mapping[str, Any],
    *,
    classes: int | None = None,
    pooling: Pooling | None = None,
) -> BertConfig:
    """The configuration that a `config.json` describes.

    Args:
      description: the object in the file.
      classes: of a new head; default: those of the checkpoint's head.
      pooling: what the head reads; default: what Hugging Face's classifier reads.

    Raises:
      ValueError: it describes another kind of model, or impossible sizes.
    """
    kind = _kind(description)
    given = _given(kind, description)
    weights.check_sizes(given, *_SIZES)
    weights.check_numbers(given, "layer_norm_eps")
    if given["hidden_size"] % given["num_attention_heads"]:
        raise ValueError("hidden_size is not a multiple of num_attention_heads")
    offset = given["pad_token_id"] + 1 if "roberta" in kind else 0
    chosen = pooling or given.get("pooling", "pooler")
    if chosen not in get_args(Pooling):
        known = ", ".join(get_args(Pooling))
        raise ValueError(f"pooling is {chosen!r}: it must be one of {known}")
    return BertConfig(
        kind=kind,
        vocabulary=given["vocab_size"],
        width=given["hidden_size"],
        hidden=given["intermediate_size"],
        depth=given["num_hidden_layers"],
        heads=given["num_attention_heads"],
        context=given["max_position_embeddings"] - offset,
        types=given["type_vocab_size"],
        offset=offset,
        epsilon=given["layer_norm_eps"],
        activation=given["hidden_act"],
        pooling=chosen,
        classes=classes or len(given.get("id2label") or ()) or 2,
    )


def _kind(description: Mapping[str, Any]) -> Kind:
    given = description.get("model_type")
    kind = next((name for name in _FAMILIES if name == given), None)
    if kind is None:
        known = ", ".join(_FAMILIES)
        raise ValueError(f"model_type is {given!r}: it must be one of {known}")
    position = description.get("position_embedding_type") or "absolute"
    if position != "absolute":
        raise ValueError(f"position_embedding_type is {position!r}, not absolute")
    if description.get("is_decoder"):
        raise ValueError("is_decoder is true: the model must be an encoder")
    return kind


def _given(kind: Kind, description: Mapping[str, Any]) -> dict[str, Any]:
    """A description with BERT's names, and Hugging Face's defaults."""
    names = {other: name for name, other in _DISTILBERT_NAMES.items()}
    distilled = kind == "distilbert"
    given: dict[str, Any] = {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 1 if "roberta" in kind else 0,
        "type_vocab_size": 2,
        "max_position_embeddings": 512,
        **{names.get(k, k) if distilled else k: v for k, v in description.items()},
    }
    activation = given["hidden_act"]
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"hidden_act is {activation!r}: it must be one of {known}")
    return given | ({"type_vocab_size": 0} if distilled else {})
