"""Text tasks in the user's files, one per client."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from potara_jax.data import text
from potara_jax.data.dealing import TASKS
from potara_jax.data.text import Example
from potara_jax.experiment.checks import require_at_least, require_that
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Resources
from potara_jax.experiment.problems import bases, texts

_TRAIN, _UPSTREAM = 0.6, 0.4  # of a task's examples: for training, and for the base
_FEWEST = 20  # examples of a task
_SEEN = 0.7  # of the tasks, by the base


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """The user's text tasks, and the Llama that learns them."""

    data: tuple[Path, ...] = ()
    """Files of examples (.jsonl, .jsonl.gz, .json), one per task."""
    checkpoint: str | None = None
    """Folder, or name on the hub, of a Llama or Qwen. Default: one is pre-trained."""
    seen: int | None = None
    """Files, from the first, that the base is pre-trained on. Default: 7 of 10."""
    context: int | None = None
    """Maximum of tokens per example; a longer one loses the start of its prompt.
    Default: what 19 of 20 examples and every answer need, at most 128."""
    train_examples: int = 1000
    """Maximum of training examples per task."""
    test_examples: int = 200
    """Maximum of test examples per client."""
    vocabulary: int = 2048
    """Tokens of the tokenizer that is trained."""
    width: int = 128
    """Width of the Llama that is pre-trained."""
    depth: int = 4
    """Its layers."""
    normalise: bool = False
    """Choose options by their log-likelihood per token, not in total."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for an invalid value."""
        expected = "files of examples, one per task"
        require_that(bool(self.data), "source.data", "empty", expected)
        number = len(self.data)
        good = self.seen is None or 1 <= self.seen <= number
        require_that(good, "source.seen", self.seen, f"from 1 to {number}")
        texts.check(self)
        require_at_least(self, "source", 8, "test_examples")
        require_at_least(self, "source", 12, "train_examples")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(path.name.split(".")[0] for path in self.data)

    @property
    def num_seen(self) -> int:
        """The number of files that the base is pre-trained on."""
        if self.checkpoint:
            return 0
        default = max(1, round(_SEEN * len(self.data)))
        return default if self.seen is None else self.seen


def read(
    experiment: Experiment, resources: Resources
) -> tuple[list[Example], list[list[Example]]]:
    """The base's examples, and the clients' of every task; no text occurs twice.

    Raises `ValueError` that names a file that is damaged or too small.
    """
    source, seed = experiment.source, bases.settings_of(experiment).seed
    files = [text.read(path) for path in source.data]
    files = without_repeats(files, seed=seed, log=resources.log)
    upstream, tasks = split_tasks(
        files,
        source.data,
        seen=source.num_seen,
        train=source.train_examples,
        seed=seed,
    )
    _log_idle(experiment, resources)
    return upstream, tasks


def _log_idle(experiment: Experiment, resources: Resources) -> None:
    """Log the files that no client has."""
    idle = experiment.source.data[experiment.cells.clients :]
    if TASKS in experiment.cells.heterogeneity and idle:
        names = ", ".join(path.name for path in idle)
        resources.log(f"no client has {names}, with one task each; set cells.clients")


def without_repeats(
    files: Sequence[Sequence[Example]], *, seed: int, log: Callable[[str], None]
) -> list[list[Example]]:
    """Keep every text once, in one of the files that have it.

    No test text is then one that the base or another client was trained on.

    Args:
      files: the examples of each.
      seed: draws the file that keeps a text.
      log: receives a line on how many were dropped.

    Returns:
      The examples that every file keeps.
    """
    rng = np.random.default_rng([seed, 3])
    keys = [_keys(examples) for examples in files]
    holders: dict[tuple[str, ...], list[int]] = {}
    for number, file_keys in enumerate(keys):
        for key in file_keys:
            holders.setdefault(key, []).append(number)
    keeper = {
        key: int(rng.choice(numbers)) if len(numbers) > 1 else numbers[0]
        for key, numbers in holders.items()
    }
    kept = []
    for number, (file_keys, examples) in enumerate(zip(keys, files, strict=True)):
        pairs = zip(file_keys, examples, strict=True)
        kept.append(list({k: x for k, x in pairs if keeper[k] == number}.values()))
    if repeated := sum(map(len, files)) - sum(map(len, kept)):
        log(f"{repeated} examples repeat a text: each text is kept once")
    return kept


def _keys(examples: Sequence[Example]) -> list[tuple[str, ...]]:
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
      seen: how many files, from the first, the base learns a part of.
      train: the maximum of training examples per task.
      seed: draws the parts.

    Returns:
      The base's examples, and the clients' of every task.

    Raises:
      ValueError: a file has too few examples; names it.
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
