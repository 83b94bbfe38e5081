"""Records in the user's files: JSON, or a table of comma- or tab-separated values.

    a.jsonl            one JSON object a line
    a.json             an array of objects, one object of equal lists, or JSON lines
    a.csv, a.tsv       a table, whose first line may name the columns
    a.txt              JSON lines, a table with tabs, or lines of fastText

All of them may be compressed (`.gz`). A table without names has the columns 1, 2, ....
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Records = list[tuple[int, Record]]
SUFFIXES = tuple(
    name + end
    for name in (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
    for end in ("", ".gz")
)
_LARGEST_CELL = 2**31 - 1
_FASTTEXT = "__label__"
_DELIMITERS = ",;\t|"
# Files that begin with these bytes are no text.
_BINARY = {b"PAR1": "Parquet", b"PK\x03\x04": "zip or Excel", b"ARROW1": "Arrow"}


def is_file_of_records(path: Path) -> bool:
    """Whether a name ends as those of files of records do."""
    return path.name.lower().endswith(SUFFIXES)


def files_in(path: Path) -> list[Path]:
    """A file; or the files of records in a folder, by name.

    Texts (.txt) count only in a folder of nothing else, as they may be notes.

    Raises:
      ValueError: the folder holds none.
    """
    if not path.is_dir():
        return [path]
    visible = sorted(each for each in path.iterdir() if each.name[0] != ".")
    files = [each for each in visible if each.is_file() and is_file_of_records(each)]
    if not files:
        known = ", ".join(SUFFIXES[::2])
        raise ValueError(f"{path} holds no file of records ({known})")
    others = [each for each in files if ".txt" not in each.suffixes]
    return others or files


def read(path: Path, columns: Collection[str]) -> tuple[Records, bool]:
    """The records of a file, with the number of each one's line.

    Args:
      path: the file.
      columns: known names of columns, in lower case. A table's first line names its
        columns if one of them is known.

    Returns:
      The records, and whether they are rows of a table without names of columns.

    Raises:
      ValueError: the file cannot be read; names it and the line.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is not a file; name one of {', '.join(SUFFIXES[::2])}"
        )
    text, kind = _text(path), path.name.lower().removesuffix(".gz")
    first = text.lstrip()[:1]
    if kind.endswith(".txt") and text.startswith(_FASTTEXT):
        return list(_labelled_lines(text)), False
    if kind.endswith((".csv", ".tsv")) or (kind.endswith(".txt") and first != "{"):
        return _table(path, text, columns)
    if kind.endswith(".json") and first in ("[", "{"):
        return list(_objects(path, _whole(path, text))), False
    return list(_objects(path, _lines(path, text))), False


def read_table(path: Path) -> Records:
    """The rows of a table whose first line names the columns, whatever their names.

    Raises:
      ValueError: as `read` does.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file: name a table (.csv, .tsv or .txt)")
    text = _text(path)
    rows = _rows(path, text)
    names = {name.strip().lower() for name in rows[0][1]} if rows else set()
    return _table(path, text, names)[0]


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        for begin, name in _BINARY.items():
            if data.startswith(begin):
                raise ValueError(
                    f"{path} is a file of {name}, not a text; write its records as "
                    ".csv or .jsonl"
                )
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        return data.decode("utf-8-sig")
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is damaged or not UTF-8 ({error}); save it as UTF-8"
        ) from None


def _labelled_lines(text: str) -> Iterator[tuple[int, Record]]:
    """Lines of fastText: a label with its prefix, a space, and a text."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            label, _, rest = line.rstrip("\r").removeprefix(_FASTTEXT).partition(" ")
            yield number, {"label": label, "text": rest}


# --- JSON ----------------------------------------------------------------------------


def _objects(
    path: Path, values: Iterator[tuple[int, Any]]
) -> Iterator[tuple[int, Record]]:
    for number, record in values:
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number} is no JSON object")
        yield number, record


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    lines = enumerate(text.split("\n"), 1)  # not at the other breaks of Unicode
    return ((n, _json(path, n, line)) for n, line in lines if line.strip())


def _whole(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The objects of one JSON value, numbered from 1; or JSON lines."""
    try:
        json.loads(text)
    except ValueError as error:
        if text.lstrip()[0] == "{" and getattr(error, "msg", "") == "Extra data":
            return _lines(path, text)
    value = _json(path, 1, text)
    if isinstance(value, dict):
        value = _unfolded(path, value)
    return iter(enumerate(value, 1))


def _unfolded(path: Path, value: Record) -> list[Any]:
    """The records of an object: equal lists as columns, or one list of records."""
    if {"users", "user_data"} <= set(value):
        raise ValueError(
            f"{path} holds the users of a LEAF data set; give it to `potara run "
            "clients`, where each of them is a client"
        )
    lists = {name: x for name, x in value.items() if isinstance(x, list)}
    if len(lists) == 1 and all(isinstance(x, dict) for x in (*lists.values(),)[0]):
        return next(iter(lists.values()))
    if len(lists) == len(value) > 0 and len({*map(len, lists.values())}) == 1:
        rows = zip(*lists.values(), strict=True)
        return [dict(zip(lists, row, strict=True)) for row in rows]
    return [value]


def _json(path: Path, number: int, text: str) -> Any:
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # no halves of surrogate pairs
        return value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number} is not JSON: {error}") from None


# --- Tables --------------------------------------------------------------------------

Rows = list[tuple[int, list[str]]]


def _table(path: Path, text: str, known: Collection[str]) -> tuple[Records, bool]:
    rows = _rows(path, text)
    if not rows:
        return [], False
    (line, first), number = rows[0], len(rows[0][1])
    if number < 2:
        raise ValueError(
            f"{path}, line {line} is '{first[0][:40]}': it has one column, where a "
            "text and its label need two, with a comma (.csv) or a tab (.tsv, .txt) "
            "between them"
        )
    for line, row in rows:
        if len(row) != number:
            raise ValueError(
                f"{path}, line {line} has {len(row)} columns, but the first line "
                f"{number}"
            )
    named = _is_named([row for _, row in rows], known)
    names = [x.strip() for x in first] if named else [*map(str, range(1, number + 1))]
    body = rows[1:] if named else rows
    return [(n, dict(zip(names, row, strict=True))) for n, row in body], not named


def _is_named(rows: list[list[str]], known: Collection[str]) -> bool:
    """Whether the first row has a known name that is no value of its column."""
    columns = zip(*rows, strict=True)
    return any(
        first.strip().lower() in known and first not in others
        for first, *others in columns
    )


def _rows(path: Path, text: str) -> Rows:
    """The rows that are not empty, with the number of each one's last line."""
    lines = list(io.StringIO(text, newline=""))
    head = next((line for line in lines if line.strip()), "")
    tabs = path.name.lower().removesuffix(".gz").endswith((".tsv", ".txt"))
    delimiter = "\t" if tabs else max(_DELIMITERS, key=_outside_quotes(head).count)
    if delimiter == "\t":
        plain = [(n, line.rstrip("\r\n")) for n, line in enumerate(lines, 1)]
        cells = [(n, line.split("\t")) for n, line in plain if line.strip()]
        if len({len(row) for _, row in cells}) == 1:
            return [(n, [_unquoted(cell) for cell in row]) for n, row in cells]
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        return [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _outside_quotes(line: str) -> str:
    return "".join(line.split('"')[::2])


def _unquoted(cell: str) -> str:
    """A cell without the quotes around it, if it is written with quotes."""
    inner = cell[1:-1]
    whole = len(cell) > 1 and cell[0] == cell[-1] == '"'
    if whole and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell
