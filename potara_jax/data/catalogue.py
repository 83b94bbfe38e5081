"""Public data sets through tensorflow-datasets, without TensorFlow.

A data set is read from a folder of prepared data sets; a missing one is downloaded and
prepared first. Data sets that tensorflow-datasets lacks, or needs TensorFlow for, have
builders in `data.builders`.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from potara_jax.data.images import Images
from potara_jax.data.text import Example

DEFAULT = Path("~/tensorflow_datasets")
_LETTERS = "ABCDE"

Record = Mapping[str, Any]


class Source(NamedTuple):
    """A text task: the name of its data set, how to read a record, and the splits.

    `train`, `test`: names of splits; a data set whose test labels are not public is
    tested on what it calls validation.
    """

    name: str
    read: Callable[[Record], Example]
    train: str = "train"
    test: str = "validation"


# --- Reading prepared data -----------------------------------------------------------


def records(
    name: str, split: str, folder: str | os.PathLike[str] = DEFAULT
) -> Iterator[Record]:
    """The records of a data set's split, one by one.

    Args:
      name: of the data set, in tensorflow-datasets or `data.builders`.
      split: its split.
      folder: of prepared data sets.

    Returns:
      An iterator over records.

    Raises:
      ValueError: the data set is damaged, or is missing and cannot be prepared.
    """
    import tensorflow_datasets as tfds
    import tensorflow_datasets.image_classification
    import tensorflow_datasets.question_answering
    import tensorflow_datasets.text

    from potara_jax.data import builders

    folder = Path(folder).expanduser()
    options = {"data_dir": folder, "file_format": "array_record"}
    kind = builders.BUILDERS.get(name)
    path = folder / (kind.name if kind else name.split("/")[0])
    advice = ""
    if path.exists():
        advice = f"delete {path}, which is incomplete, damaged or of another version; "
    try:
        builder = kind(**options) if kind else tfds.builder(name, **options)
        builder.download_and_prepare()
        source: Any = builder.as_data_source(split=split)
    except Exception as error:  # whatever a download or a damaged file raises
        raise ValueError(
            f"data set {name} is not in {folder} and cannot be prepared "
            f"({_brief(error)}); {advice}prepare it where there is a network, with the "
            f"same command, and copy {path} here"
        ) from None
    return _checked(source, path)


def _checked(source: Iterable[Record], path: Path) -> Iterator[Record]:
    try:
        yield from source
    except Exception as error:  # whatever the reader raises
        raise ValueError(
            f"{path} is damaged ({_brief(error)}); delete it, and the same command "
            "prepares it again where there is a network"
        ) from None


def _brief(error: Exception) -> str:
    """An error's message on one short line."""
    return textwrap.shorten(str(error), 160, placeholder="...")


def texts(
    source: Source,
    part: Literal["train", "test"],
    folder: str | os.PathLike[str] = DEFAULT,
) -> list[Example]:
    """The examples of a task's `train` or `test` part; raises as `records` does."""
    split = {"train": source.train, "test": source.test}[part]
    return [source.read(_plain(r)) for r in records(source.name, split, folder)]


def _plain(record: Any) -> Any:
    """A record with bytes as text, and arrays as numbers and lists."""
    if isinstance(record, Mapping):
        return {name: _plain(value) for name, value in record.items()}
    if isinstance(record, np.ndarray | np.generic):
        return _plain(record.tolist())
    if isinstance(record, list):
        return [_plain(value) for value in record]
    return record.decode() if isinstance(record, bytes) else record


def images(name: str, split: str, folder: str | os.PathLike[str] = DEFAULT) -> Images:
    """All images of a split; raises as `records` does."""
    pairs = [
        (np.asarray(r["image"]), int(r["label"])) for r in records(name, split, folder)
    ]
    pixels = np.stack([image for image, _ in pairs])
    labels = np.array([label for _, label in pairs], np.int32)
    return Images(pixels, labels, tuple(map(str, range(int(labels.max()) + 1))))


# --- Prompts -------------------------------------------------------------------------

# Every prompt ends with "Answer:" and lists its choices by letter, where the
# commonsense suite of LLM-Adapters (arXiv 2304.01933) lists them by number.


def _choice(question: str, options: list[str], gold: int) -> Example:
    letters = _LETTERS[: len(options)]
    listed = "\n".join(f"{x}. {o}" for x, o in zip(letters, options, strict=True))
    return Example(f"{question}\n{listed}\nAnswer:", tuple(letters), gold)


def _yes_or_no(question: str, yes: bool) -> Example:
    return Example(f"{question}\nAnswer:", ("no", "yes"), int(yes))


def _bool_q(r: Record) -> Example:
    return _yes_or_no(f"{r['passage']}\n{r['question']}?", r["answer"])


def _piqa(r: Record) -> Example:
    return _choice(f"Goal: {r['goal']}", [r["sol1"], r["sol2"]], r["label"])


def _social_i_qa(r: Record) -> Example:
    options = [r["answerA"], r["answerB"], r["answerC"]]
    return _choice(f"{r['context']}\n{r['question']}", options, r["label"])


def _hellaswag(r: Record) -> Example:
    return _choice(f"{r['context']} ...", list(r["endings"]), r["label"])


def _winogrande(r: Record) -> Example:
    question = f"{r['sentence']}\nWhat does _ stand for?"
    return _choice(question, [r["option1"], r["option2"]], r["label"])


def _arc(r: Record) -> Example:
    options = list(r["choices"]["text"])
    place = list(r["choices"]["label"]).index(r["answerKey"])
    return _choice(f"Question: {r['question']}", options, place)


def _openbookqa(r: Record) -> Example:
    options = [r["question"][f"choice_{x}"] for x in "ABCD"]
    return _choice(f"Question: {r['question']['stem']}", options, r["answerKey"])


def _cosmos_qa(r: Record) -> Example:
    options = [r[f"answer{i}"] for i in range(4)]
    return _choice(f"{r['context']}\nQuestion: {r['question']}", options, r["label"])


def _pronouns(r: Record) -> Example:
    question = f'{r["sentence"]}\nWho or what is "{r["pronoun"]}"?'
    return _choice(question, list(r["candidates"]), r["label"])


def _qqp(r: Record) -> Example:
    both = f"First: {r['question1']}\nSecond: {r['question2']}"
    return _yes_or_no(f"{both}\nDo they ask the same?", r["label"])


def _mnli(r: Record) -> Example:
    prompt = f"Premise: {r['premise']}\nHypothesis: {r['hypothesis']}\n"
    options = ("entailment", "neutral", "contradiction")
    return Example(f"{prompt}Answer:", options, int(r["label"]))


def _squad(r: Record) -> Example:
    prompt = f"{r['context']}\nQuestion: {r['question']}\nAnswer:"
    return Example(prompt, (r["answers"]["text"][0],))


def _sst2(r: Record) -> Example:
    prompt = f"Review: {r['sentence']}\nAnswer:"
    return Example(prompt, ("negative", "positive"), int(r["label"]))


_ARC_CHALLENGE = Source("ai2_arc/ARC-Challenge", _arc, test="test")
_HELLASWAG = Source("hellaswag", _hellaswag)

COMMONSENSE: Mapping[str, Source] = {
    "boolq": Source("bool_q", _bool_q),
    "piqa": Source("piqa", _piqa),
    "social_i_qa": Source("social_i_qa", _social_i_qa),
    "hellaswag": _HELLASWAG,
    "winogrande": Source("winogrande", _winogrande, train="train_xl"),
    "arc_easy": Source("ai2_arc/ARC-Easy", _arc, test="test"),
    "arc_challenge": _ARC_CHALLENGE,
    "openbookqa": Source("openbookqa", _openbookqa, test="test"),
}
FLAN: Mapping[str, Source] = {
    "arc_challenge": _ARC_CHALLENGE,
    "cosmos_qa": Source("cosmos_qa", _cosmos_qa),
    "definite_pronoun_resolution": Source(
        "definite_pronoun_resolution", _pronouns, test="test"
    ),
    "glue_qqp": Source("glue/qqp", _qqp),
    "hellaswag": _HELLASWAG,
    "mnli": Source("glue/mnli", _mnli, test="validation_matched"),
    "squad_v1": Source("squad/v1.1", _squad),
    "sst2": Source("glue/sst2", _sst2),
}
