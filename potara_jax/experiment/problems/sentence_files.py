"""Tasks of labelled sentences in the user's files, or in public data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from potara_jax.data import catalogue, glue, records, text
from potara_jax.data.sentences import Sentence
from potara_jax.data.text import Example
from potara_jax.experiment.checks import (
    require_at_least,
    require_one_of,
    require_that,
)
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Resources
from potara_jax.experiment.problems import bases, text_files
from potara_jax.models import weights
from potara_jax.models.bert import Pooling

PUBLIC = {"sst2": glue.TASKS["sst2"], "trec": glue.TREC, "cola": glue.TASKS["cola"]}
_FIRST = "sst2", "trec"


@dataclasses.dataclass(frozen=True)
class SentenceFiles:
    """Labelled sentences, and the encoder that learns them."""

    data: tuple[Path, ...] = ()
    """Files of texts and labels (.jsonl, .json, .csv, .tsv, also .gz), or folders of
    them. Files whose names are equal up to the first dot are one task. Default: data
    sets of tensorflow-datasets."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks to take. Default: all whose files have labels; without files,
    sst2 and trec of sst2, trec and cola."""
    data_dir: Path = catalogue.DEFAULT
    """Folder of tensorflow-datasets; missing data sets are downloaded into it."""
    checkpoint: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Folder, or name on the hub, of a BERT, RoBERTa, XLM-R or DistilBERT."""
    pooling: Pooling = "mean"
    """What the head reads: the mean of all tokens, the first token (cls), or the first
    token after one more dense layer (pooler)."""
    context: int | None = None
    """Maximum of tokens per sentence; a longer one loses its end. Default: what 19 of
    20 sentences need, at most 128."""
    train_examples: int = 1000
    """Maximum of training examples per task."""
    test_examples: int = 200
    """Maximum of test examples per client."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for an invalid value."""
        for name in () if self.data else self.tasks:
            require_one_of(name, "source.tasks", PUBLIC)
        require_at_least(self, "source", 8, "context", "test_examples")
        require_at_least(self, "source", 12, "train_examples")


class SentenceTask(NamedTuple):
    """A task of sentences, or of pairs.

    Attributes:
      name: what it is called.
      classes: their names.
      sentences: the examples.
      labels: the class of each.
      num_tests: the last examples, which only tests may use. 0: any may be tested.
    """

    name: str
    classes: tuple[str, ...]
    sentences: Sequence[Sentence]
    labels: Sequence[int]
    num_tests: int = 0


def files_of(experiment: Experiment) -> list[Path]:
    """The files whose content determines an experiment's results."""
    source: SentenceFiles = experiment.source
    chosen = find(source).values() if source.data else ()
    return [
        *(p for paths in chosen for p in paths),
        *weights.files_of(source.checkpoint),
    ]


def find(source: SentenceFiles) -> dict[str, list[Path]]:
    """The files of every task, by its name.

    Raises:
      ValueError: there are none, or none of a task that the user names.
    """
    groups: dict[str, list[Path]] = {}
    for path in _paths(source.data):
        groups.setdefault(path.name.split(".")[0], []).append(path)
    known = ", ".join(groups)
    for name in source.tasks:
        require_that(name in groups, "source.tasks", name, f"among {known or 'none'}")
    if source.tasks:
        return {name: groups[name] for name in source.tasks}
    labelled = {n: p for n, p in groups.items() if all(map(text.is_labelled, p))}
    names = " ".join(map(str, source.data))
    require_that(bool(labelled), "source.data", names, "of records with text and label")
    return labelled


def _paths(data: Sequence[Path]) -> Iterator[Path]:
    for path in data:
        yield from records.files_in(path)


def read(experiment: Experiment, resources: Resources) -> list[SentenceTask]:
    """The tasks, with no sentence twice.

    Args:
      experiment: with the files' names.
      resources: what making the problem may use.

    Raises:
      ValueError: a file is damaged, a task is too small, or a data set is missing and
        cannot be prepared; the message names it.
    """
    source, seed = experiment.source, bases.settings_of(experiment).seed
    places, examples = _in_files(source) if source.data else _public(source)
    files = text_files.without_repeats(list(examples.values()), log=resources.log)
    limit = source.train_examples
    _, kept = text_files.split_tasks(
        files, places, seen=0, train=limit, seed=seed, log=resources.log
    )
    return [_task(name, mine) for name, mine in zip(examples, kept, strict=True)]


_Tasks = tuple[list[Path], dict[str, list[Example]]]  # where they are; by name


def _in_files(source: SentenceFiles) -> _Tasks:
    groups = find(source)
    places = [paths[0] for paths in groups.values()]
    return places, {name: _joined(paths) for name, paths in groups.items()}


def _public(source: SentenceFiles) -> _Tasks:
    """All labelled sentences of public data sets, of both of their parts."""
    chosen = {name: PUBLIC[name] for name in source.tasks or _FIRST}
    places = [source.data_dir / task.data_set for task in chosen.values()]
    return places, {name: _prepared(x, source.data_dir) for name, x in chosen.items()}


def _prepared(task: glue.PublicTask, folder: Path) -> list[Example]:
    parts = [glue.read(task, split, folder) for split in ("train", task.test)]
    return [
        Example(f"{sentence}{text.LABEL}", task.classes, label)
        for part in parts
        for sentence, label in zip(part.sentences, part.labels, strict=True)
    ]


def _joined(paths: Sequence[Path]) -> list[Example]:
    """The examples of a task's files, which share their labels."""
    return [example for examples in text.read_together(paths) for example in examples]


def _task(name: str, examples: Sequence[Example]) -> SentenceTask:
    return SentenceTask(
        name,
        examples[0].options,
        [x.pair or x.prompt.removesuffix(text.LABEL) for x in examples],
        [example.gold for example in examples],
    )
