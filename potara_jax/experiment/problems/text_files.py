"""Text tasks in the user's files, one per client."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from potara_jax.data import records, text
from potara_jax.data.dealing import TASKS
from potara_jax.data.federation import Batch
from potara_jax.data.text import Example
from potara_jax.experiment.checks import require_at_least, require_that
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Federations, Resources
from potara_jax.experiment.problems import bases, federations, scale, texts

_TRAIN, _UPSTREAM = 0.6, 0.4  # of a task's examples: for training, and for the base
_FEWEST = 20  # examples of a task
_SEEN = 0.7  # of the tasks, by the base


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """The user's text tasks, and the Llama that learns them."""

    data: tuple[Path, ...] = ()
    """Files of examples, one per task, or folders of them: JSON (.jsonl, .json) or
    tables (.csv, .tsv, .txt), which may be compressed (.gz)."""
    fields: tuple[str, ...] = ()
    """Names of the files' fields where they are not the usual ones, such as
    text=abstract label=field. Default: the usual names."""
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
    width: int | None = None
    """Width of the Llama that is pre-trained. Default: 128, or 96 on few processors."""
    depth: int | None = None
    """Its layers. Default: 4, or 3 on few processors."""
    normalise: bool = False
    """Choose options by their log-likelihood per token, not in total."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for an invalid value."""
        expected = "files of examples, one per task"
        require_that(bool(self.data), "source.data", "empty", expected)
        number = len(self.paths)
        good = self.seen is None or 1 <= self.seen <= number
        require_that(good, "source.seen", self.seen, f"from 1 to {number}")
        texts.check(self)
        require_at_least(self, "source", 8, "test_examples")
        require_at_least(self, "source", 12, "train_examples")

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, also those in folders."""
        return tuple(each for path in self.data for each in records.files_in(path))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(path.name.split(".")[0] for path in self.paths)

    @property
    def num_seen(self) -> int:
        """The number of files that the base is pre-trained on."""
        if self.checkpoint:
            return 0
        default = max(1, round(_SEEN * len(self.paths)))
        return default if self.seen is None else self.seen


def resolve(experiment: Experiment) -> Experiment:
    """The experiment with a base and its pre-training that suit the device."""
    return experiment.set(scale.suited(experiment, scale.TEXTS))


def read(
    experiment: Experiment, resources: Resources
) -> tuple[list[Example], list[list[Example]]]:
    """The base's examples, and the clients' of every task; no text is in both.

    Args:
      experiment: with the files' names.
      resources: what making the problem may use.

    Raises:
      ValueError: a file is damaged or too small; the message names it.
    """
    source, seed = experiment.source, bases.settings_of(experiment).seed
    fields, log = texts.fields_of(source), resources.log
    files = [text.read(path, fields=fields, log=log) for path in source.paths]
    upstream, tasks = split_tasks(
        without_repeats(files, log=log),
        source.paths,
        seen=source.num_seen,
        train=source.train_examples,
        seed=seed,
        log=log,
    )
    _log_idle(experiment, resources)
    return upstream, tasks


def dealt(
    experiment: Experiment, pool: Batch, tasks: Sequence[Sequence[Example]]
) -> Federations:
    """Deal examples to clients by task; equal texts are in one part of the split.

    Args:
      experiment: its cells and samples.
      pool: the examples of all tasks.
      tasks: the same, as texts.

    Returns:
      The federations by cell.
    """
    same = identities(tasks)
    return federations.dealt(
        experiment,
        pool,
        texts.strata_of(tasks),
        test=experiment.source.test_examples,
        same=same,
    )


def _log_idle(experiment: Experiment, resources: Resources) -> None:
    """Log the files that no client has."""
    idle = experiment.source.paths[experiment.cells.clients :]
    if TASKS in experiment.cells.heterogeneity and idle:
        names = ", ".join(path.name for path in idle)
        resources.log(f"no client has {names}, with one task each; set cells.clients")


def without_repeats(
    files: Sequence[Sequence[Example]], *, log: Callable[[str], None]
) -> list[list[Example]]:
    """Keep every text once in each file that has it: the first of its examples.

    Args:
      files: the examples of each.
      log: receives a line on how many were dropped, and on texts of several files.

    Returns:
      The examples that every file keeps.
    """
    kept = []
    for examples in files:
        firsts: dict[Key, Example] = {}
        for key, example in zip(keys_of(examples), examples, strict=True):
            firsts.setdefault(key, example)
        kept.append(list(firsts.values()))
    if repeated := sum(map(len, files)) - sum(map(len, kept)):
        log(f"{repeated} examples repeat a text of their task: the first is kept")
    if shared := shared_texts(kept):
        log(
            f"{shared} texts occur in several tasks: all clients train on such a text, "
            "or are tested on it, or neither"
        )
    return kept


Key = tuple[str, ...]


def keys_of(examples: Sequence[Example]) -> list[Key]:
    """Every example's text, with its options where they differ within the file."""
    choices = {x.options for x in examples if len(x.options) > 1}
    differ = len(choices) > 1
    return [
        (x.prompt.removesuffix(text.LABEL).strip(), *(x.options if differ else ()))
        for x in examples
    ]


def shared_texts(files: Sequence[Sequence[Example]]) -> int:
    """The number of texts that several files have."""
    counts = collections.Counter(key for each in files for key in {*keys_of(each)})
    return sum(count > 1 for count in counts.values())


def identities(files: Sequence[Sequence[Example]]) -> np.ndarray:
    """Numbers `[P]` of all files' examples, equal for equal texts."""
    known: dict[Key, int] = {}
    keys = (key for examples in files for key in keys_of(examples))
    return np.array([known.setdefault(key, len(known)) for key in keys], int)


def split_tasks(
    files: Sequence[Sequence[Example]],
    paths: Sequence[Path],
    *,
    seen: int,
    train: int,
    seed: int,
    log: Callable[[str], None],
) -> tuple[list[Example], list[list[Example]]]:
    """Split every task's examples between the base and the clients.

    A text that several files have is the base's or the clients' in all of them.

    Args:
      files: the examples of each task, with no text twice.
      paths: where they come from.
      seen: how many files, from the first, the base learns a part of.
      train: the maximum of training examples per task.
      seed: draws the parts.
      log: receives a line on examples that are left out, as the base knows their texts.

    Returns:
      The base's examples, and the clients' of every task.

    Raises:
      ValueError: a file has too few examples; names it.
    """
    rng = np.random.default_rng([seed, 0])
    upstream: list[Example] = []
    tasks: list[list[Example]] = []
    decided: dict[Key, bool] = {}  # whether a text is the base's
    for number, (path, examples) in enumerate(zip(paths, files, strict=True)):
        order = rng.permutation(len(examples))
        first = round(_UPSTREAM * len(examples)) if number < seen else 0
        mine, known = _divide(examples, order, first, decided)
        if number < seen:
            upstream += known
        elif known:
            log(
                f"{len(known)} examples of {path} are left out, as the base has seen "
                "their texts in another task"
            )
        tasks.append(mine[: round(train / _TRAIN)])
        if len(tasks[-1]) < _FEWEST:
            raise ValueError(
                f"{path} has {len(examples)} examples, which leaves clients "
                f"{len(tasks[-1])}: they must have {_FEWEST} or more"
            )
    return upstream, tasks


def _divide(
    examples: Sequence[Example],
    order: np.ndarray,
    first: int,
    decided: dict[Key, bool],
) -> tuple[list[Example], list[Example]]:
    """The clients' and the base's: the first ones in an order, or as decided before."""
    keys = keys_of(examples)
    parts: tuple[list[Example], list[Example]] = ([], [])
    for place, number in enumerate(order):
        of_base = decided.setdefault(keys[number], place < first)
        parts[of_base].append(examples[number])
    return parts
