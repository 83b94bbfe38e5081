"""GLUE (Wang et al. 2018, arXiv 1804.07461): sentences or pairs, and their classes.

The labels of GLUE's test parts are not public, so that a task is tested on what it
calls validation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from potara_jax.data import catalogue
from potara_jax.data.sentences import Sentence


class PublicTask(NamedTuple):
    """A task of sentences or pairs, as tensorflow-datasets has it.

    Attributes:
      data_set: its name.
      fields: what a record calls its sentence, or the two of a pair.
      classes: the names of its classes.
      test: the split to test on.
    """

    data_set: str
    fields: tuple[str, ...]
    classes: tuple[str, ...]
    test: str = "validation"


class Labelled(NamedTuple):
    """Sentences or pairs, and the class of each."""

    sentences: list[Sentence]
    labels: list[int]


_ENTAILMENT = "entailment", "not_entailment"

TASKS: Mapping[str, PublicTask] = {
    "sst2": PublicTask("glue/sst2", ("sentence",), ("negative", "positive")),
    "qnli": PublicTask("glue/qnli", ("question", "sentence"), _ENTAILMENT),
    "qqp": PublicTask(
        "glue/qqp", ("question1", "question2"), ("not_duplicate", "duplicate")
    ),
    "mnli": PublicTask(
        "glue/mnli",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        test="validation_matched",
    ),
    "rte": PublicTask("glue/rte", ("sentence1", "sentence2"), _ENTAILMENT),
    "mrpc": PublicTask(
        "glue/mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent")
    ),
    "cola": PublicTask("glue/cola", ("sentence",), ("unacceptable", "acceptable")),
}


# Li and Roth 2002, whose questions are no task of GLUE.
TREC = PublicTask(
    "trec", ("text",), ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"), test="test"
)


def read(
    task: PublicTask, split: str, folder: str | os.PathLike[str] = catalogue.DEFAULT
) -> Labelled:
    """The examples of a task's split.

    Args:
      task: one of `TASKS`, or `TREC`.
      split: `train`, or the task's `test`.
      folder: of prepared data sets.

    Returns:
      The examples in the data set's order.

    Raises:
      ValueError: as `catalogue.records` does.
    """
    examples = Labelled([], [])
    for record in catalogue.records(task.data_set, split, folder):
        first, *second = (record[field].decode() for field in task.fields)
        examples.sentences.append((first, *second) if second else first)
        examples.labels.append(int(record["label"]))
    return examples
