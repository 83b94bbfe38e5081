"""Public data sets through tensorflow-datasets, without TensorFlow.

Each is read from a folder of prepared data sets, and prepared there where it is not yet
and there is a network. What needs TensorFlow to be prepared, or is not in the
catalogue, has a builder of this project's own, in `data.builders`.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from potara_jax.data.images import Images
from potara_jax.data.text import Example

DEFAULT = Path("~/tensorflow_datasets")
_LETTERS = "ABCDE"


class Source(NamedTuple):
    """A text task: its data set's name, how a record is read, and the splits.

    train, test: of the data set; what has no public test labels is tested on what it
    calls validation.
    """

    name: str
    read: Callable[[Mapping[str, Any]], Example]
    train: str = "train"
    test: str = "validation"


# --- Reading prepared data -----------------------------------------------------------


def records(name: str, split: str, folder: str | os.PathLike[str] = DEFAULT):
    """The records of a data set's split, one by one.

    Raises `ValueError` where it is not there and cannot be had, or is damaged.
    """
    import tensorflow_datasets as tfds
    import tensorflow_datasets.image_classification
    import tensorflow_datasets.question_answering
    import tensorflow_datasets.text

    from potara_jax.data import builders

    folder = Path(folder).expanduser()
    how = {"data_dir": folder, "file_format": "array_record"}
    own = builders.OWN.get(name)
    where = folder / (own.name if own else name.split("/")[0])
    mend = ""
    if where.exists():
        mend = f"delete {where}, which is incomplete, damaged or of another version; "
    try:
        builder = own(**how) if own else tfds.builder(name, **how)
        builder.download_and_prepare()
        found = builder.as_data_source(split=split)
    except Exception as error:  # whatever a download or a damaged file raises
        raise ValueError(
            f"data set {name} is not in {folder} and cannot be had ({_brief(error)}); "
            f"{mend}prepare it where there is a network, with the same command, and "
            f"copy {where} here"
        ) from None
    return _sound(found, where)


def _sound(found: Iterable[Any], where: Path) -> Iterator[Any]:
    try:
        yield from found
    except Exception as error:  # whatever the reader raises
        raise ValueError(
            f"{where} is damaged ({_brief(error)}); delete it, and the same command "
            "prepares it again where there is a network"
        ) from None


def _brief(error: Exception) -> str:
    """What went wrong, on one short line."""
    return textwrap.shorten(str(error), 160, placeholder="...")


def texts(
    source: Source, part: str, folder: str | os.PathLike[str] = DEFAULT
) -> list[Example]:
    """The examples of a task's `train` or `test` part."""
    split = getattr(source, part)
    return [source.read(_plain(r)) for r in records(source.name, split, folder)]


def _plain(record: Any) -> Any:
    """A record with bytes as text and arrays as numbers and lists."""
    if isinstance(record, Mapping):
        return {name: _plain(value) for name, value in record.items()}
    if isinstance(record, np.ndarray | np.generic):
        return _plain(record.tolist())
    if isinstance(record, list):
        return [_plain(value) for value in record]
    return record.decode() if isinstance(record, bytes) else record


def images(name: str, split: str, folder: str | os.PathLike[str] = DEFAULT) -> Images:
    """All images of a split."""
    found = [
        (np.asarray(r["image"]), int(r["label"])) for r in records(name, split, folder)
    ]
    pixels = np.stack([image for image, _ in found])
    labels = np.array([label for _, label in found], np.int32)
    return Images(pixels, labels, tuple(map(str, range(int(labels.max()) + 1))))


# --- Prompts -------------------------------------------------------------------------

# Every prompt ends with "Answer:", and lists its choices by letters, as the commonsense
# suite of LLM-Adapters (arXiv 2304.01933) numbers them.


def _chosen(question: str, options: list[str], gold: int) -> Example:
    letters = _LETTERS[: len(options)]
    listed = "\n".join(f"{x}. {o}" for x, o in zip(letters, options, strict=True))
    return Example(f"{question}\n{listed}\nAnswer:", tuple(letters), int(gold))


def _yes_or_no(question: str, yes: bool) -> Example:
    return Example(f"{question}\nAnswer:", ("no", "yes"), int(yes))


def _bool_q(r) -> Example:
    return _yes_or_no(f"{r['passage']}\n{r['question']}?", r["answer"])


def _piqa(r) -> Example:
    return _chosen(f"Goal: {r['goal']}", [r["sol1"], r["sol2"]], r["label"])


def _social_i_qa(r) -> Example:
    options = [r["answerA"], r["answerB"], r["answerC"]]
    return _chosen(f"{r['context']}\n{r['question']}", options, r["label"])


def _hellaswag(r) -> Example:
    return _chosen(f"{r['context']} ...", list(r["endings"]), r["label"])


def _winogrande(r) -> Example:
    question = f"{r['sentence']}\nWhat does _ stand for?"
    return _chosen(question, [r["option1"], r["option2"]], r["label"])


def _arc(r) -> Example:
    options = list(r["choices"]["text"])
    place = list(r["choices"]["label"]).index(r["answerKey"])
    return _chosen(f"Question: {r['question']}", options, place)


def _openbookqa(r) -> Example:
    options = [r["question"][f"choice_{x}"] for x in "ABCD"]
    return _chosen(f"Question: {r['question']['stem']}", options, r["answerKey"])


def _cosmos_qa(r) -> Example:
    options = [r[f"answer{i}"] for i in range(4)]
    return _chosen(f"{r['context']}\nQuestion: {r['question']}", options, r["label"])


def _pronouns(r) -> Example:
    question = f'{r["sentence"]}\nWho or what is "{r["pronoun"]}"?'
    return _chosen(question, list(r["candidates"]), r["label"])


def _qqp(r) -> Example:
    both = f"First: {r['question1']}\nSecond: {r['question2']}"
    return _yes_or_no(f"{both}\nDo they ask the same?", r["label"])


def _mnli(r) -> Example:
    prompt = f"Premise: {r['premise']}\nHypothesis: {r['hypothesis']}\n"
    options = ("entailment", "neutral", "contradiction")
    return Example(f"{prompt}Answer:", options, int(r["label"]))


def _squad(r) -> Example:
    prompt = f"{r['context']}\nQuestion: {r['question']}\nAnswer:"
    return Example(prompt, (r["answers"]["text"][0],))


def _sst2(r) -> Example:
    prompt = f"Review: {r['sentence']}\nAnswer:"
    return Example(prompt, ("negative", "positive"), int(r["label"]))


_ARC_CHALLENGE = Source("ai2_arc/ARC-Challenge", _arc, test="test")
_HELLASWAG = Source("hellaswag", _hellaswag)

COMMONSENSE: dict[str, Source] = {
    "boolq": Source("bool_q", _bool_q),
    "piqa": Source("piqa", _piqa),
    "social_i_qa": Source("social_i_qa", _social_i_qa),
    "hellaswag": _HELLASWAG,
    "winogrande": Source("winogrande", _winogrande, train="train_xl"),
    "arc_easy": Source("ai2_arc/ARC-Easy", _arc, test="test"),
    "arc_challenge": _ARC_CHALLENGE,
    "openbookqa": Source("openbookqa", _openbookqa, test="test"),
}
FLAN: dict[str, Source] = {
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
