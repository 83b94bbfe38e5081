"""Tasks of GLUE: their settings, and the sentences and pairs that clients learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from potara_jax.data import catalogue, glue
from potara_jax.data.glue import Labelled
from potara_jax.data.sentences import Sentence, stripped
from potara_jax.experiment.checks import (
    require_at_least,
    require_distinct,
    require_one_of,
)
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Resources
from potara_jax.experiment.problems import bases
from potara_jax.experiment.problems.sentence_files import SentenceTask
from potara_jax.models.bert import Pooling


@dataclasses.dataclass(frozen=True)
class Glue:
    """Tasks of GLUE, and the encoder that learns them."""

    tasks: tuple[str, ...] = ("sst2",)
    """Tasks among sst2, qnli, qqp, mnli, rte, mrpc and cola. The classes of one are
    dealt to the clients, or those of several together."""
    checkpoint: str = "FacebookAI/roberta-base"
    """Folder, or name on the hub, of a BERT, RoBERTa, XLM-R or DistilBERT."""
    pooling: Pooling = "pooler"
    """What the head reads: the first token after one more dense layer (pooler), the
    first token (cls), or the mean of all tokens. Without a dense layer,
    set lora.whole to head."""
    data_dir: Path = catalogue.DEFAULT
    """Folder of tensorflow-datasets; missing data sets are downloaded into it."""
    context: int | None = 128
    """Maximum of tokens per sentence or pair; a longer one loses ends. None: what 19 of
    20 need, at most 128."""
    train_examples: int | None = None
    """Maximum of training examples per task. Default: all."""
    test_examples: int | None = None
    """Maximum of test examples per task, of which each client's test weighs the classes
    in its proportions. Default: all of GLUE's validation (MNLI: the matched one)."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for an invalid value."""
        require_distinct(self, "source", "tasks")
        for name in self.tasks:
            require_one_of(name, "source.tasks", glue.TASKS)
        require_at_least(self, "source", 8, "context", "test_examples")
        require_at_least(self, "source", 12, "train_examples")


def read(experiment: Experiment, resources: Resources) -> list[SentenceTask]:
    """The tasks; no training example has the text of a test.

    Args:
      experiment: its source is a `Glue`.
      resources: the log.

    Returns:
      The tasks. The last examples of each are its tests.

    Raises:
      ValueError: a data set is damaged, or is missing and cannot be prepared.
    """
    source: Glue = experiment.source
    rng = np.random.default_rng([bases.settings_of(experiment).seed, 0])
    tests = {
        name: _drawn(_read(name, source, "test"), source.test_examples, rng)
        for name in source.tasks
    }
    tested = {stripped(x) for part in tests.values() for x in part.sentences}
    tasks = []
    for name, test in tests.items():
        everything = _read(name, source, "train")
        others = _without(everything, tested)
        if dropped := len(everything.labels) - len(others.labels):
            resources.log(f"{dropped} training examples of {name} repeat a test")
        train = _drawn(others, source.train_examples, rng)
        tasks.append(_task(name, train, test))
    return tasks


def _read(name: str, source: Glue, part: str) -> Labelled:
    task = glue.TASKS[name]
    split = task.test if part == "test" else part
    return glue.read(task, split, source.data_dir)


def _without(examples: Labelled, texts: set[Sentence]) -> Labelled:
    """Examples without those of some texts."""
    sentences = enumerate(examples.sentences)
    return _chosen(examples, (n for n, x in sentences if stripped(x) not in texts))


def _drawn(
    examples: Labelled, number: int | None, rng: np.random.Generator
) -> Labelled:
    """Examples drawn at random if there are more than a number."""
    if number is None or number >= len(examples.labels):
        return examples
    return _chosen(examples, rng.permutation(len(examples.labels))[:number].tolist())


def _chosen(examples: Labelled, places: Iterable[int]) -> Labelled:
    places = list(places)
    return Labelled(
        [examples.sentences[n] for n in places], [examples.labels[n] for n in places]
    )


def _task(name: str, train: Labelled, test: Labelled) -> SentenceTask:
    return SentenceTask(
        name,
        glue.TASKS[name].classes,
        [*train.sentences, *test.sentences],
        [*train.labels, *test.labels],
        num_tests=len(test.labels),
    )
