"""Problems of texts: a checkpoint, or a Llama that learns upstream examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from potara_jax.adapters.lora import Params
from potara_jax.data import text, tokens
from potara_jax.data.federation import Batch
from potara_jax.data.text import Example
from potara_jax.data.tokens import Tokenizer
from potara_jax.experiment.checks import (
    require_at_least,
    require_at_most,
    require_that,
)
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
    def fields(self) -> tuple[str, ...]: ...
    @property
    def context(self) -> int | None: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def width(self) -> int | None: ...
    @property
    def depth(self) -> int | None: ...
    @property
    def normalise(self) -> bool: ...


def check(source: TextModel) -> None:
    """Raise `ValueError` for invalid sizes or names of fields."""
    fields_of(source)
    least, largest = _VOCABULARY
    require_at_least(source, "source", least, "vocabulary")
    require_at_most(source, "source", largest, "vocabulary")
    require_at_least(source, "source", 8, "context")
    bases.check_sizes(source)


def fields_of(source: TextModel) -> dict[str, str]:
    """The names of the files' fields that the user gives, by what they mean.

    Raises:
      ValueError: something is no such name.
    """
    pairs = [each.partition("=") for each in source.fields]
    known = {*(role for f in text.FORMS for role in (*f.names, *f.optional))}
    for given, (role, _, name) in zip(source.fields, pairs, strict=True):
        expected = f"ROLE=NAME, of a role among {', '.join(sorted(known))}"
        require_that(role in known and bool(name), "source.fields", given, expected)
    return {role: name for role, _, name in pairs}


def problem(
    experiment: Experiment,
    upstream: Sequence[Example],
    groups: Sequence[Sequence[Example]],
    federate: Callable[[Batch, Sequence[Sequence[Example]]], Federations],
    contents: ClientContents,
    resources: Resources,
) -> Problem:
    """A problem of a Llama that learns upstream examples, or of a checkpoint.

    Args:
      experiment: its source is a `TextModel`.
      upstream: examples that the base is pre-trained on.
      groups: the clients' examples, one group per task or client.
      federate: from a pool and the groups that it holds to federations.
      contents: names of what clients hold.
      resources: the cache, and the log.

    Returns:
      The problem.
    """
    source: TextModel = experiment.source
    model, context, groups = _model(experiment, upstream, groups, resources)
    examples = [example for group in groups for example in group]
    choices = language.encode(examples, model.tokenizer, context, resources.log)
    federations = federate(language.batch(choices), groups)
    return language.problem(
        experiment, model, federations, contents, normalise=source.normalise
    )


def strata_of(groups: Sequence[Sequence[Example]]) -> np.ndarray:
    """The group of every example, `[P]`."""
    return np.repeat(np.arange(len(groups)), [len(group) for group in groups])


def _model(
    experiment: Experiment,
    upstream: Sequence[Example],
    groups: Sequence[Sequence[Example]],
    resources: Resources,
) -> tuple[LanguageModel, int, list[list[Example]]]:
    """The model, the maximum of tokens per example, and the clients' examples."""
    source: TextModel = experiment.source
    everything = [*upstream, *(example for group in groups for example in group)]
    if source.checkpoint:
        model = language.loaded(source.checkpoint)
        chosen = choose_context(everything, model.tokenizer, source.context)
        context = min(chosen, model.config.context)
        kept = fitting(groups, model.tokenizer, context, resources.log)
        return model, context, kept
    tokenizer = _learn_tokenizer(upstream, source.vocabulary)
    context = choose_context(everything, tokenizer, source.context)
    upstream, *groups = fitting([upstream, *groups], tokenizer, context, resources.log)
    config = _sized(source, tokenizer, context)
    settings = bases.settings_of(experiment)
    read = partial(_pretrain, config, upstream, tokenizer, settings, resources)
    return LanguageModel(tokenizer, config, read), context, groups


def fitting(
    groups: Sequence[Sequence[Example]],
    tokenizer: Tokenizer,
    context: int,
    log: Callable[[str], None],
) -> list[list[Example]]:
    """The examples whose answers fit the context, if those are 19 of 20 or more.

    Args:
      groups: the examples.
      tokenizer: of their texts.
      context: the maximum of tokens per example.
      log: receives a line on those that are left out.

    Returns:
      The groups without them.

    Raises:
      ValueError: they are more; names the file and the line of the first.
    """
    sized = [
        list(zip(group, tokens.lengths(group, tokenizer), strict=True))
        for group in groups
    ]
    every = [(example, size) for group in sized for example, (_, size) in group]
    long = [(example, size) for example, size in every if size >= context]
    if long:
        _check_outliers(long, context, len(every), log)
    return [[x for x, (_, size) in group if size < context] for group in sized]


def _check_outliers(
    long: Sequence[tuple[Example, int]],
    context: int,
    examples: int,
    log: Callable[[str], None],
) -> None:
    """A line on examples with long answers, or an error if they are many."""
    (first, size), number = long[0], len(long)
    needed = max(size for _, size in long) + _PROMPT
    problem = (
        f"{first.place or first.prompt[:40]}: the answer has {size} tokens, which "
        f"exceeds the context of {context}"
    )
    if number > (1 - _WHOLE) * examples:
        raise ValueError(
            f"{problem}, as in {number} of {examples} examples: set source.context to "
            f"{needed} or more"
        )
    log(
        f"{problem}: {number} of {examples} examples are left out for that; "
        f"source.context {needed} keeps them"
    )


def choose_context(
    examples: Sequence[Example], tokenizer: Tokenizer, context: int | None
) -> int:
    """The largest number of tokens of an example.

    Args:
      examples: all of them.
      tokenizer: of their texts.
      context: chosen by the user, or None.

    Returns:
      The user's choice; or what 19 of 20 examples and every answer need that fits in
      128 tokens, at most 128.
    """
    if context:
        return context
    needed, answers = np.transpose(tokens.lengths(examples, tokenizer))
    usual = int(np.quantile(needed, _WHOLE, method="inverted_cdf"))
    fits = answers[answers + _PROMPT <= _LONGEST]
    length = max(usual, int(fits.max(initial=0)) + _PROMPT)
    return min(_LONGEST, -(-length // 8) * 8)


def _learn_tokenizer(upstream: Sequence[Example], size: int) -> Tokenizer:
    return tokens.trained((f"{x.prompt} {x.options[x.gold]}" for x in upstream), size)


def _sized(source: TextModel, tokenizer: Tokenizer, context: int) -> LlamaConfig:
    width, depth = bases.sizes_of(source)
    heads = width // bases.HEAD_WIDTH
    return LlamaConfig(
        vocabulary=tokenizer.size,
        width=width,
        hidden=width * 5 // 2,
        depth=depth,
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
