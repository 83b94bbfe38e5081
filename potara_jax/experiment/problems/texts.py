"""Problems of text examples that belong to files: tasks, or clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from potara_jax.adapters.lora import Params
from potara_jax.data import tokens
from potara_jax.data.federation import Batch
from potara_jax.data.text import Example
from potara_jax.data.tokens import Tokenizer
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import (
    ClientContents,
    Federations,
    Problem,
    Resources,
)
from potara_jax.experiment.problems import bases, language
from potara_jax.experiment.problems.language import LanguageModel
from potara_jax.experiment.settings import (
    Pretraining,
    require_at_least,
    require_at_most,
    require_that,
)
from potara_jax.models.llama import LlamaConfig

HEAD_WIDTH = 32
_TRAIN, _UPSTREAM = 0.6, 0.4  # of a task's examples: for training, and for the base
_FEWEST = 20  # examples of a task
_VOCABULARY = 300, 10**6
# The share of examples that keep their whole prompts, the longest context, and the
# tokens of a prompt before the longest answer.
_WHOLE, _LONGEST, _PROMPT = 0.95, 128, 8


class TextModel(Protocol):
    """Settings of a problem of texts: a checkpoint, or the sizes of a new Llama."""

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
    """Raise `ValueError` for sizes that cannot be."""
    least, largest = _VOCABULARY
    require_at_least(source, "source", least, "vocabulary")
    require_at_most(source, "source", largest, "vocabulary")
    require_at_least(source, "source", 8, "context", "width")
    require_at_least(source, "source", 1, "depth")
    good = source.width % HEAD_WIDTH == 0
    require_that(good, "source.width", source.width, f"a multiple of {HEAD_WIDTH}")


def problem(
    experiment: Experiment,
    source: TextModel,
    upstream: Sequence[Example],
    groups: Sequence[Sequence[Example]],
    federate: Callable[[Batch, np.ndarray], Federations],
    contents: ClientContents,
    resources: Resources,
) -> Problem:
    """A problem of a Llama that learns upstream examples, or of a checkpoint.

    Args:
      experiment: its settings.
      source: the model's settings.
      upstream: examples that the base is pre-trained on.
      groups: the clients' examples, one group per task or client.
      federate: from a pool and the group of every example to federations.
      contents: names of what clients have.
      resources: the cache, and the log.

    Returns:
      The problem.
    """
    examples = [example for group in groups for example in group]
    everything = [*upstream, *examples]
    if source.checkpoint:
        model = language.loaded(source.checkpoint)
        context = choose_context(everything, model.tokenizer, source.context)
        context = min(context, model.config.context)
    else:
        tokenizer = _learn_tokenizer(upstream, source.vocabulary)
        context = choose_context(everything, tokenizer, source.context)
        settings = bases.settings_of(experiment)
        model = _model(source, upstream, tokenizer, context, settings, resources)
    choices = language.encode(examples, model.tokenizer, context, resources.log)
    strata = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    federations = federate(language.batch(choices), strata)
    return language.problem(
        experiment, model, federations, contents, normalise=source.normalise
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
      The user's choice; or what 19 of 20 examples and every answer need, 128 at most.
    """
    if context:
        return context
    needed, answers = np.transpose(tokens.lengths(examples, tokenizer))
    usual = int(np.quantile(needed, _WHOLE, method="inverted_cdf"))
    length = max(usual, int(answers.max()) + _PROMPT)
    return min(_LONGEST, -(-length // 8) * 8)


def _learn_tokenizer(upstream: Sequence[Example], size: int) -> Tokenizer:
    return tokens.trained((f"{x.prompt} {x.options[x.gold]}" for x in upstream), size)


def _model(
    source: TextModel,
    upstream: Sequence[Example],
    tokenizer: Tokenizer,
    context: int,
    settings: Pretraining,
    resources: Resources,
) -> LanguageModel:
    """A Llama that is pre-trained when it is read."""
    config = LlamaConfig(
        vocabulary=tokenizer.size,
        width=source.width,
        hidden=source.width * 5 // 2,
        depth=source.depth,
        heads=source.width // HEAD_WIDTH,
        key_heads=source.width // HEAD_WIDTH,
        theta=10000.0,
        context=context,
    )
    read = partial(_pretrain, config, upstream, tokenizer, settings, resources)
    return LanguageModel(tokenizer, config, read)


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


# --- Examples of files ---------------------------------------------------------------


def without_repeats(
    files: Sequence[Sequence[Example]], *, seed: int, log: Callable[[str], None]
) -> list[list[Example]]:
    """Keep every text once, in one of the files that have it.

    No test text is then one that the base or another client was trained on.

    Args:
      files: the examples of each.
      seed: draws the file that keeps a text.
      log: takes a line on how many were dropped.

    Returns:
      The examples that every file keeps.
    """
    rng = np.random.default_rng([seed, 3])
    texts = [_texts(examples) for examples in files]
    holders: dict[tuple[str, ...], list[int]] = {}
    for number, file_texts in enumerate(texts):
        for text in file_texts:
            holders.setdefault(text, []).append(number)
    keeper = {text: files_[0] for text, files_ in holders.items()}
    several = {text: files_ for text, files_ in holders.items() if len(files_) > 1}
    keeper |= {text: int(rng.choice(files_)) for text, files_ in several.items()}
    kept = []
    for number, (file_texts, examples) in enumerate(zip(texts, files, strict=True)):
        pairs = zip(file_texts, examples, strict=True)
        kept.append(list({t: x for t, x in pairs if keeper[t] == number}.values()))
    if repeated := sum(map(len, files)) - sum(map(len, kept)):
        log(f"{repeated} examples repeat a text: each text is kept once")
    return kept


def _texts(examples: Sequence[Example]) -> list[tuple[str, ...]]:
    """Every example's prompt, with its options where they differ within the file."""
    choices = {x.options for x in examples if len(x.options) > 1}
    return [(x.prompt, *(x.options if len(choices) > 1 else ())) for x in examples]


def split_tasks(
    files: Sequence[Sequence[Example]],
    paths: Sequence[Path],
    *,
    seen: int,
    train: int,
    seed: int,
) -> tuple[list[Example], list[list[Example]]]:
    """Split every task's examples between the base and the clients.

    Args:
      files: the examples of each task.
      paths: where they come from.
      seen: files, from the first, of which the base has a part.
      train: training examples per task, at most.
      seed: draws the parts.

    Returns:
      The base's examples, and the clients' of every task.

    Raises:
      ValueError: names a file with too few examples.
    """
    rng = np.random.default_rng([seed, 0])
    upstream: list[Example] = []
    tasks: list[list[Example]] = []
    largest = round(train / _TRAIN)
    for number, (path, examples) in enumerate(zip(paths, files, strict=True)):
        order = rng.permutation(len(examples))
        first = round(_UPSTREAM * len(examples)) if number < seen else 0
        upstream += [examples[i] for i in order[:first]]
        tasks.append([examples[i] for i in order[first:][:largest]])
        if len(tasks[-1]) < _FEWEST:
            raise ValueError(
                f"{path} has {len(examples)} examples, which leaves clients "
                f"{len(tasks[-1])}: they must have {_FEWEST} or more"
            )
    return upstream, tasks
