"""Problems of texts: a checkpoint, or a Llama that learns upstream examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from potara_jax.adapters.lora import Params
from potara_jax.data import tokens
from potara_jax.data.federation import Batch
from potara_jax.data.text import Example
from potara_jax.data.tokens import Tokenizer
from potara_jax.experiment.checks import require_at_least, require_at_most
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import (
    ClientContents,
    Federations,
    Problem,
    Resources,
)
from potara_jax.experiment.problems import bases, language
from potara_jax.experiment.problems.language import LanguageModel
from potara_jax.experiment.settings import Pretraining
from potara_jax.models.llama import LlamaConfig

_VOCABULARY = 300, 10**6
# The share of examples that keep their whole prompts, the longest context, and the
# tokens of a prompt before the longest answer.
_WHOLE, _LONGEST, _PROMPT = 0.95, 128, 8


class TextModel(Protocol):
    """Settings of a model of texts: a checkpoint, or the sizes of a new Llama."""

    @property
    def checkpoint(self) -> str | None: ...
    @property
    def context(self) -> int | None: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def normalise(self) -> bool: ...


def check(source: TextModel) -> None:
    """Raise `ValueError` for invalid sizes."""
    least, largest = _VOCABULARY
    require_at_least(source, "source", least, "vocabulary")
    require_at_most(source, "source", largest, "vocabulary")
    require_at_least(source, "source", 8, "context")
    bases.check_sizes(source)


def problem(
    experiment: Experiment,
    upstream: Sequence[Example],
    groups: Sequence[Sequence[Example]],
    federate: Callable[[Batch, np.ndarray], Federations],
    contents: ClientContents,
    resources: Resources,
) -> Problem:
    """A problem of a Llama that learns upstream examples, or of a checkpoint.

    Args:
      experiment: its source is a `TextModel`.
      upstream: examples that the base is pre-trained on.
      groups: the clients' examples, one group per task or client.
      federate: from a pool and the group of every example to federations.
      contents: names of what clients hold.
      resources: the cache, and the log.

    Returns:
      The problem.
    """
    source: TextModel = experiment.source
    examples = [example for group in groups for example in group]
    model, context = _model(experiment, upstream, examples, resources)
    choices = language.encode(examples, model.tokenizer, context, resources.log)
    strata = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    federations = federate(language.batch(choices), strata)
    return language.problem(
        experiment, model, federations, contents, normalise=source.normalise
    )


def _model(
    experiment: Experiment,
    upstream: Sequence[Example],
    examples: Sequence[Example],
    resources: Resources,
) -> tuple[LanguageModel, int]:
    """The model, and the maximum of tokens per example."""
    source: TextModel = experiment.source
    everything = [*upstream, *examples]
    if source.checkpoint:
        model = language.loaded(source.checkpoint)
        context = choose_context(everything, model.tokenizer, source.context)
        return model, min(context, model.config.context)
    tokenizer = _learn_tokenizer(upstream, source.vocabulary)
    context = choose_context(everything, tokenizer, source.context)
    config = _sized(source, tokenizer, context)
    settings = bases.settings_of(experiment)
    read = partial(_pretrain, config, upstream, tokenizer, settings, resources)
    return LanguageModel(tokenizer, config, read), context


def choose_context(
    examples: Sequence[Example], tokenizer: Tokenizer, context: int | None
) -> int:
    """The largest number of tokens of an example.

    Args:
      examples: all of them.
      tokenizer: of their texts.
      context: chosen by the user, or None.

    Returns:
      The user's choice; or what 19 of 20 examples and every answer need, at most 128.
    """
    if context:
        return context
    needed, answers = np.transpose(tokens.lengths(examples, tokenizer))
    usual = int(np.quantile(needed, _WHOLE, method="inverted_cdf"))
    length = max(usual, int(answers.max()) + _PROMPT)
    return min(_LONGEST, -(-length // 8) * 8)


def _learn_tokenizer(upstream: Sequence[Example], size: int) -> Tokenizer:
    return tokens.trained((f"{x.prompt} {x.options[x.gold]}" for x in upstream), size)


def _sized(source: TextModel, tokenizer: Tokenizer, context: int) -> LlamaConfig:
    heads = source.width // bases.HEAD_WIDTH
    return LlamaConfig(
        vocabulary=tokenizer.size,
        width=source.width,
        hidden=source.width * 5 // 2,
        depth=source.depth,
        heads=heads,
        key_heads=heads,
        theta=10000.0,
        context=context,
    )


def _pretrain(
    config: LlamaConfig,
    upstream: Sequence[Example],
    tokenizer: Tokenizer,
    settings: Pretraining,
    resources: Resources,
) -> Params:
    choices = language.encode(
        upstream, tokenizer, config.context, resources.log, whose="the base's"
    )
    return language.pretrain(config, tokens.pack_texts(choices), settings, resources)
