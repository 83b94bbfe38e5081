"""A problem of a Llama, and the encoding of its texts.

Dimension letters: `P` examples, `B` batch, `R` rows of packed texts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters import lora, precision
from potara_jax.adapters.lora import Adapter, Params, Site
from potara_jax.clients.answering import of_answers, packed_loss, side_by_side
from potara_jax.data import tokens
from potara_jax.data.federation import Batch
from potara_jax.data.text import Example
from potara_jax.data.tokens import Choices, Packed, Tokenizer
from potara_jax.experiment.checks import require_that
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import (
    ClientContents,
    Federations,
    Problem,
    Resources,
    Split,
    Writer,
    adapter_maker,
)
from potara_jax.experiment.problems import bases
from potara_jax.experiment.settings import Pretraining
from potara_jax.models import llama, publishing, weights
from potara_jax.models.decoding import greedy
from potara_jax.models.llama import Llama, LlamaConfig, Text
from potara_jax.models.publishing import Form


class LanguageModel(NamedTuple):
    """A Llama whose parameters are read when they are needed.

    Attributes:
      tokenizer: of its texts.
      config: its sizes.
      read: returns its parameters.
      checkpoint: the folder or name that it comes from; None for a model trained here.
    """

    tokenizer: Tokenizer
    config: LlamaConfig
    read: Callable[[], Params]
    checkpoint: str | None = None


def problem(
    experiment: Experiment,
    model: LanguageModel,
    federations: Federations,
    contents: ClientContents,
    *,
    normalise: bool = False,
) -> Problem:
    """A problem of a Llama, whose parameters are read once all else is checked.

    Args:
      experiment: its adapters and precision.
      model: the Llama.
      federations: by cell.
      contents: names of what clients hold.
      normalise: whether an option is chosen by its log-likelihood per token.

    Returns:
      The problem.

    Raises:
      ValueError: the settings do not suit a Llama.
    """
    settings, compute = experiment.lora, experiment.compute
    _check(experiment)
    dtype = bases.activation_dtype(compute.precision)
    frozen = bases.first_adapted(settings, model.config.depth)
    config = dataclasses.replace(
        model.config, dtype=dtype, remat=compute.remat, frozen=frozen
    )
    module, text = Llama(config), example_text()
    named = lora.find_sites(module, text, targets=settings.targets)
    sites = {p: s for p, s in named.items() if not p.startswith(llama.FROZEN)}
    lora.check_rank(sites, settings.rank)
    kernels = lora.find_sites(module, text, targets=".*_proj")
    task = of_answers(lora.bind(module, scale=settings.scale), normalise=normalise)
    task = task._replace(add=lora.bind_add(sites, scale=settings.scale))
    base = llama.with_frozen(model.read(), frozen)
    return Problem(
        task=task,
        base=precision.KINDS[compute.precision](base, kernels),
        adapter=adapter_maker(sites, rank=settings.rank, base=base, whole=()),
        federations=federations,
        form=_form(model, config, sites, settings.scale),
        writer=_writer(model.tokenizer, module, settings.scale),
        contents=contents,
        split=Split(frozen, config.depth, _below(module), task),
    )


def _below(module: Llama) -> Callable[[Params, Choices], Choices]:
    """What the frozen layers compute of prompts and their options, kept with them."""
    apply = lora.bind(module, scale=1.0)

    def below(base: Params, choices: Choices) -> Choices:
        text = side_by_side(choices)
        return choices._replace(hidden=apply(base, {}, text, method="below"))

    return below


def _check(experiment: Experiment) -> None:
    curvature, whole = experiment.merging.curvature, experiment.lora.whole
    expected = "sampled or empirical: answers have many tokens"
    require_that(curvature != "exact", "merging.curvature", curvature, expected)
    expected = "empty: factors alone adapt a Llama"
    require_that(not whole, "lora.whole", whole, expected)


def _writer(tokenizer: Tokenizer, module: Llama, scale: float) -> Writer:
    apply = lora.bind(module, scale=scale)

    def write(
        base: Params,
        adapter: Adapter,
        prompts: jax.Array,
        counts: jax.Array,
        length: int,
    ) -> jax.Array:
        def read(*args: Any) -> Any:
            return apply(base, adapter, *args, method="read")

        size = prompts.shape[1] + length
        cache = llama.empty_cache(module.config, len(prompts), size)
        return greedy(
            read, cache, prompts, counts, max_tokens=length, stop=tokenizer.end
        )

    return Writer(write, tokenizer.decode, tokenizer.end)


def _form(
    model: LanguageModel,
    config: LlamaConfig,
    sites: Mapping[str, Site],
    scale: float,
) -> Form:
    if model.checkpoint:
        folder = weights.folder_of(model.checkpoint)
        described, files = weights.read_config(folder), publishing.read_files(folder)
    else:
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        described = llama.description_of(model.config) | special
        files = _tokenizer_files(model.tokenizer)
    return Form(
        llama.table_of(config),
        described,
        files,
        sites=sites,
        scale=scale,
        checkpoint=model.checkpoint,
        task="CAUSAL_LM",
    )


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    pad, begin, end = tokens.SPECIAL
    config = {
        "pad_token": pad,
        "bos_token": begin,
        "eos_token": end,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        "tokenizer_config.json": json.dumps(config, indent=1) + "\n",
        "tokenizer.json": tokenizer.file,
    }


# --- Models --------------------------------------------------------------------------


def loaded(checkpoint: str) -> LanguageModel:
    """A Llama or Qwen of Hugging Face; its parameters are loaded when it is read.

    Raises:
      ValueError: it is neither, or cannot be loaded.
    """
    folder = weights.folder_of(checkpoint)
    description = weights.read_config(folder)
    with weights.errors_naming(folder / weights.CONFIG):
        config = llama.config_of(description)
        tokenizer = tokens.from_folder(folder, description)

    def read() -> Params:
        init = partial(Llama(config).init, jax.random.key(0))
        shapes = jax.eval_shape(init, example_text())["params"]
        return weights.load(folder, llama.TABLE, shapes)

    return LanguageModel(tokenizer, config, read, checkpoint)


def pretrain(
    config: LlamaConfig, rows: Packed, settings: Pretraining, resources: Resources
) -> Params:
    """A Llama that learns to answer texts, or is read from the cache.

    Args:
      config: its sizes.
      rows: `[R, ...]`, the texts.
      settings: of the pre-training.
      resources: the cache, and the log.

    Returns:
      Its parameters.
    """
    model = Llama(config)
    loss = packed_loss(lora.bind(model, scale=1.0))
    text = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example_text())
    return bases.pretrained(
        config,
        lambda key: model.init(key, text)["params"],
        lambda params, batch: loss(params, {}, batch),
        rows,
        settings,
        resources,
    )


def example_text() -> Text:
    """The shapes of a text, from which a model derives its shapes."""

    def example() -> Text:
        return Text(jnp.zeros((1, 8), jnp.int32), jnp.zeros((1, 2), jnp.int32))

    return jax.eval_shape(example)


# --- Examples ------------------------------------------------------------------------


def encode(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    context: int,
    log: Callable[[str], None],
    *,
    whose: str = "the clients'",
) -> Choices:
    """All examples as arrays, with a line on those whose prompts are cut."""
    choices, cut = tokens.encode(examples, tokenizer, context=context)
    if cut:
        log(
            f"{cut} of {whose} {len(examples)} examples have more than {context} "
            "tokens: their prompts lost their beginning (source.context)"
        )
    return choices


def batch(choices: Choices) -> Batch:
    """All examples on the device, with the tokens of the right answers as labels."""
    rows = np.arange(len(choices.gold))
    labels = choices.answers[rows, choices.gold]
    return jax.tree.map(jnp.asarray, Batch(choices, labels))
