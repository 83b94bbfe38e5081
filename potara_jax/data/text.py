"""Text tasks from the user's files: examples of a prompt, options, and the right one.

A file has one task: JSON lines (`.jsonl`, `.jsonl.gz`) or one JSON array (`.json`), of

    {"text", "label"}                      options: all labels of the file, or files;
                                           the text may be empty
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


class Example(NamedTuple):
    """A prompt, what may follow it, and the index of what does.

    With one option there is nothing to choose from: it has to be written.
    """

    prompt: str
    options: tuple[str, ...]
    gold: int = 0


def read(path: str | os.PathLike[str]) -> list[Example]:
    """The examples of a file, in its order.

    Raises `ValueError` with the file, the line and what is wrong there, and where the
    file has labels, but one alone.
    """
    labelled, found = _examples(Path(path))
    if labelled and len(found[0].options) == 1:
        label = found[0].options[0]
        raise ValueError(
            f"{path} has the label '{label}' alone: a task has two or more"
        )
    return found


def read_together(paths: Sequence[str | os.PathLike[str]]) -> list[list[Example]]:
    """The examples of several files; where they have labels, those of all of them.

    Raises `ValueError` as `read` does, but a file may have one label, if all have not.
    """
    read = [_examples(Path(path)) for path in paths]
    known = {x for labelled, own in read if labelled for x in own[0].options}
    options = tuple(sorted(known, key=_by_number))
    if len(options) == 1:
        raise ValueError(f"all files have the label '{options[0]}' alone")
    among = lambda e: Example(e.prompt, options, options.index(e.options[e.gold]))
    return [[among(e) for e in own] if labelled else own for labelled, own in read]


def _examples(path: Path) -> tuple[bool, list[Example]]:
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


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every record, with its line's number, or its own in an array."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file; name one of JSON lines")
    text = _text(path)
    if path.name.removesuffix(".gz").endswith(".json") and text.lstrip()[:1] == "[":
        found = enumerate(_json(path, 1, text), 1)
    else:
        lines = enumerate(text.split("\n"), 1)  # not at the other breaks of Unicode
        found = ((n, _json(path, n, line)) for n, line in lines if line.strip())
    for number, record in found:
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number} is no JSON object")
        yield number, record


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        return data.decode("utf-8-sig")
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no UTF-8 text ({error})") from None


def _json(path: Path, number: int, text: str) -> Any:
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # no halves of surrogate pairs
        return value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number} is not JSON: {error}") from None


def _labelled(path: Path, records) -> list[Example]:
    field = lambda *where: str(_field(path, *where, (str, int))).strip()
    labels = [field(number, record, "label") for number, record in records]
    if "" in labels:
        line = records[labels.index("")][0]
        raise ValueError(f"{path}, line {line}: the label is blank")
    options = tuple(sorted(set(labels), key=_by_number))
    empty = lambda record: record.get("text") == ""  # which some data sets hold
    text = lambda n, r: "" if empty(r) else _field(path, n, r, "text", str)
    return [
        Example(f"{text(*record)}\nlabel:", options, options.index(label))
        for record, label in zip(records, labels, strict=True)
    ]


def _by_number(label: str) -> tuple[bool, int, str]:
    """Whole numbers by their value, before all else."""
    digits = label.removeprefix("-")
    number = digits.isascii() and digits.isdigit() and len(digits) < 19
    return not number, int(label) if number else 0, label


def _chosen(path: Path, records) -> list[Example]:
    return [_choice(path, *record) for record in records]


def _choice(path: Path, number: int, record) -> Example:
    options = _field(path, number, record, "choices", list)
    gold = _field(path, number, record, "gold", int)
    if len(options) < 2 or not all(isinstance(option, str) for option in options):
        raise ValueError(f"{path}, line {number}: choices must be two texts or more")
    if len({option.strip() for option in options}) < len(options):
        raise ValueError(f"{path}, line {number}: two choices are alike: {options}")
    if not 0 <= gold < len(options):
        raise ValueError(f"{path}, line {number}: gold is {gold}: no choice has it")
    return Example(_field(path, number, record, "query", str), tuple(options), gold)


def _instructed(path: Path, records) -> list[Example]:
    def one(number, record) -> Example:
        name = "output" if record.get("output") or "answer" not in record else "answer"
        asked = _field(path, number, record, "instruction", str)
        more = _field(path, number, record, "input", str) if record.get("input") else ""
        prompt = f"{asked}\n{more}" if more else asked
        answer = _field(path, number, record, name, str)
        if not answer.strip():
            raise ValueError(f"{path}, line {number}: the {name} is blank")
        return Example(f"{prompt}\n", (answer,))

    return [one(*record) for record in records]


def _field(path: Path, number: int, record, name: str, kind) -> Any:
    """A field's value, of a kind, and not empty."""
    value = record.get(name)
    if not isinstance(value, kind) or isinstance(value, bool) or value == "":
        told = f"{name} is {value!r}" if name in record else f"there is no {name}"
        raise ValueError(f"{path}, line {number}: {told}; it must be {_ALLOWED[kind]}")
    return value


_ALLOWED = {
    str: "a text",
    int: "a whole number",
    list: "a list",
    (str, int): "a text or a whole number",
}
_FORMS: Sequence[tuple[set[str], Callable[..., list[Example]]]] = (
    ({"query", "choices", "gold"}, _chosen),
    ({"instruction", "output"}, _instructed),
    ({"instruction", "answer"}, _instructed),
    ({"text", "label"}, _labelled),
)
