"""Text tasks from the user's files: examples of a prompt, options, and the right one.

A file holds one task, as JSON lines (`.jsonl`, `.jsonl.gz`) or one JSON array
(`.json`). Its records have one of three forms:

    {"text", "label"}                      options: all labels of the file, or of all
                                           files; the text may be empty
    {"query", "choices", "gold"}           options: the choices
    {"instruction", "input", "output"}     one option: the output, or "answer"
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from potara_jax.data.labels import by_number

LABEL = "\nlabel:"  # between a text and its label

Record = dict[str, Any]
Records = list[tuple[int, Record]]


class Example(NamedTuple):
    """A prompt, the options that may follow it, and the index of the right one.

    With one option there is nothing to choose: the model must write the answer.
    """

    prompt: str
    options: tuple[str, ...]
    gold: int = 0


def read(path: str | os.PathLike[str]) -> list[Example]:
    """The examples of a file, in its order.

    Raises:
      ValueError: a record cannot be used (names the file, the line and the reason), or
        all records have the same label.
    """
    labelled, examples = _read_one(Path(path))
    if labelled and len(examples[0].options) == 1:
        label = examples[0].options[0]
        raise ValueError(f"{path} has only the label '{label}': a task has two or more")
    return examples


def read_together(paths: Sequence[str | os.PathLike[str]]) -> list[list[Example]]:
    """The examples of several files, whose labelled examples share all labels.

    Raises `ValueError` as `read` does, except that one file may have a single label.
    """
    files = [_read_one(Path(path)) for path in paths]
    labels = {x for labelled, mine in files if labelled for x in mine[0].options}
    options = tuple(sorted(labels, key=by_number))
    if len(options) == 1:
        raise ValueError(f"all files have only the label '{options[0]}'")

    def among_all(example: Example) -> Example:
        gold = options.index(example.options[example.gold])
        return Example(example.prompt, options, gold)

    return [
        list(map(among_all, examples)) if labelled else examples
        for labelled, examples in files
    ]


def is_labelled(path: str | os.PathLike[str]) -> bool:
    """Whether a file's first record has a text and a label."""
    _, first = next(_records(Path(path)), (0, {}))
    forms = (make for needed, make in _FORMS if needed <= set(first))
    return next(forms, None) is _labelled


def _read_one(path: Path) -> tuple[bool, list[Example]]:
    """Whether a file's examples have labels, and the examples."""
    records = list(_records(path))
    if not records:
        raise ValueError(f"{path} holds no examples")
    line, first = records[0]
    for needed, make in _FORMS:
        if needed <= set(first):
            return make is _labelled, make(path, records)
    forms = "; or ".join(", ".join(sorted(needed)) for needed, _ in _FORMS)
    has = ", ".join(sorted(first)) or "nothing"
    raise ValueError(f"{path}, line {line} has {has}: it needs {forms}")


def _records(path: Path) -> Iterator[tuple[int, Record]]:
    """Every record with the number of its line, or its place in an array."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file; name one of JSON lines")
    text = _text(path)
    if path.name.removesuffix(".gz").endswith(".json") and text.lstrip()[:1] == "[":
        values = enumerate(_json(path, 1, text), 1)
    else:
        lines = enumerate(text.split("\n"), 1)  # not at the other breaks of Unicode
        values = ((n, _json(path, n, line)) for n, line in lines if line.strip())
    for number, record in values:
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number} is no JSON object")
        yield number, record


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        return data.decode("utf-8-sig")
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or not UTF-8 ({error})") from None


def _json(path: Path, number: int, text: str) -> Any:
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # no halves of surrogate pairs
        return value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number} is not JSON: {error}") from None


# --- The forms of a record -----------------------------------------------------------


def _labelled(path: Path, records: Records) -> list[Example]:
    labels = [
        str(_field(path, number, record, "label", (str, int))).strip()
        for number, record in records
    ]
    if "" in labels:
        line = records[labels.index("")][0]
        raise ValueError(f"{path}, line {line}: the label is blank")
    options = tuple(sorted(set(labels), key=by_number))
    return [
        Example(f"{_body(path, *record)}{LABEL}", options, options.index(label))
        for record, label in zip(records, labels, strict=True)
    ]


def _body(path: Path, number: int, record: Record) -> str:
    """The text of a labelled record, which some data sets leave empty."""
    if record.get("text") == "":
        return ""
    return _field(path, number, record, "text", str)


def _choices(path: Path, records: Records) -> list[Example]:
    return [_choice(path, *record) for record in records]


def _choice(path: Path, number: int, record: Record) -> Example:
    options = _field(path, number, record, "choices", list)
    gold = _field(path, number, record, "gold", int)
    if len(options) < 2 or not all(isinstance(option, str) for option in options):
        raise ValueError(f"{path}, line {number}: choices must be two texts or more")
    if len({option.strip() for option in options}) < len(options):
        raise ValueError(f"{path}, line {number}: two choices are equal: {options}")
    if not 0 <= gold < len(options):
        raise ValueError(f"{path}, line {number}: gold is {gold}: no choice has it")
    return Example(_field(path, number, record, "query", str), tuple(options), gold)


def _instructions(path: Path, records: Records) -> list[Example]:
    return [_instruction(path, *record) for record in records]


def _instruction(path: Path, number: int, record: Record) -> Example:
    name = "output" if record.get("output") or "answer" not in record else "answer"
    prompt = _field(path, number, record, "instruction", str)
    if record.get("input"):
        prompt = f"{prompt}\n{_field(path, number, record, 'input', str)}"
    answer = _field(path, number, record, name, str)
    if not answer.strip():
        raise ValueError(f"{path}, line {number}: the {name} is blank")
    return Example(f"{prompt}\n", (answer,))


def _field(
    path: Path,
    number: int,
    record: Record,
    name: str,
    kind: type | tuple[type, ...],
) -> Any:
    """A field's value, of a kind, and not empty."""
    value = record.get(name)
    if not isinstance(value, kind) or isinstance(value, bool) or value == "":
        problem = f"{name} is {value!r}" if name in record else f"{name} is missing"
        allowed = _ALLOWED[kind]
        raise ValueError(f"{path}, line {number}: {problem}; it must be {allowed}")
    return value


_ALLOWED: dict[type | tuple[type, ...], str] = {
    str: "a text",
    int: "a whole number",
    list: "a list",
    (str, int): "a text or a whole number",
}
_FORMS: Sequence[tuple[set[str], Callable[[Path, Records], list[Example]]]] = (
    ({"query", "choices", "gold"}, _choices),
    ({"instruction", "output"}, _instructions),
    ({"instruction", "answer"}, _instructions),
    ({"text", "label"}, _labelled),
)
