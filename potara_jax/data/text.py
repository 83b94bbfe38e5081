"""Text tasks from the user's files: examples of a prompt, options, and the right one.

A file has one task: JSON lines (`.jsonl`, `.jsonl.gz`) or one JSON array (`.json`), of

    {"text", "label"}                      options: all labels of the file
    {"query", "choices", "gold"}           options: the choices
    {"instruction", "input", "output"}     one option: the output, or "answer"
"""

from __future__ import annotations

import gzip
import json
import os
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

    Raises `ValueError` with the file, the line and what is wrong there.
    """
    path = Path(path)
    records = list(_records(path))
    if not records:
        raise ValueError(f"{path} holds no examples")
    fields = set(records[0][1])
    for needed, make in _FORMS:
        if needed <= fields:
            return make(path, records)
    forms = "; or ".join(", ".join(sorted(needed)) for needed, _ in _FORMS)
    raise ValueError(
        f"{path}, line 1 has {', '.join(sorted(fields)) or 'nothing'}: it needs {forms}"
    )


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
        return data.decode("utf-8")
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no UTF-8 text ({error})") from None


def _json(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}, line {number} is not JSON: {error}") from None


def _labelled(path: Path, records) -> list[Example]:
    labels = [_field(path, n, record, "label", (str, int)) for n, record in records]
    options = tuple(str(label) for label in sorted(set(labels), key=_by_value))
    return [
        Example(
            f"{_field(path, n, record, 'text', str)}\nlabel:",
            options,
            options.index(str(label)),
        )
        for (n, record), label in zip(records, labels, strict=True)
    ]


def _by_value(label) -> tuple[bool, Any]:
    return isinstance(label, str), label


def _chosen(path: Path, records) -> list[Example]:
    return [_choice(path, *record) for record in records]


def _choice(path: Path, number: int, record) -> Example:
    options = _field(path, number, record, "choices", list)
    gold = _field(path, number, record, "gold", int)
    if len(options) < 2 or not all(isinstance(option, str) for option in options):
        raise ValueError(f"{path}, line {number}: choices must be two texts or more")
    if not 0 <= gold < len(options):
        raise ValueError(f"{path}, line {number}: gold is {gold}: no choice has it")
    return Example(_field(path, number, record, "query", str), tuple(options), gold)


def _instructed(path: Path, records) -> list[Example]:
    def one(number, record) -> Example:
        name = "output" if record.get("output") else "answer"
        asked = _field(path, number, record, "instruction", str)
        more = record.get("input")
        prompt = f"{asked}\n{more}" if more else asked
        return Example(f"{prompt}\n", (_field(path, number, record, name, str),))

    return [one(*record) for record in records]


def _field(path: Path, number: int, record, name: str, kind) -> Any:
    value = record.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{path}, line {number}: {name} is {value!r}")
    return value


_FORMS: Sequence[tuple[set[str], Callable[..., list[Example]]]] = (
    ({"query", "choices", "gold"}, _chosen),
    ({"instruction", "output"}, _instructed),
    ({"instruction", "answer"}, _instructed),
    ({"text", "label"}, _labelled),
)
