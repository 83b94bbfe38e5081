"""Files that are never half-written, and a folder that one process has at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """All that a file holds, at once."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside, to write; flushed to disk and renamed when all is well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of JSON, keys in their order."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value of a file; `ValueError` naming the file where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from None


def read_whole_json(path: Path, warn: Callable[[str], None]) -> Any | None:
    """A file's JSON object; None where it is not there or, with a line, damaged."""
    if not path.exists():
        return None
    try:
        found = read_json(path)
    except ValueError:
        found = None
    if isinstance(found, dict) and found:
        return found
    warn(f"{path} is damaged; making it anew")
    return None


def read_json_lines(path: Path) -> list[Any]:
    """The JSON values of a file's lines, without the torn one of a killed run."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [value for value in map(_parsed, lines) if value is not None]


def _parsed(line: bytes) -> Any | None:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


DATA = "data_digest"


def digest(paths: Sequence[Path]) -> str:
    """A digest of what files hold, and all files below folders.

    Raises `ValueError` for a name that is no UTF-8.
    """
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        for file in _below(path):
            total.update(_encoded(file.relative_to(path)))
            with open(file, "rb") as opened:
                total.update(hashlib.file_digest(opened, "blake2b").digest())
    return total.hexdigest()


def _below(path: Path) -> list[Path]:
    """The file, or all files in a folder, also behind links to folders."""
    if not path.is_dir():
        _encoded(path)
        return [path] if path.is_file() else []
    walked = os.walk(path, followlinks=True)
    found = (Path(folder, name) for folder, _, names in walked for name in names)
    return sorted(file for file in found if file.is_file())


def _encoded(path: Path) -> bytes:
    try:
        return str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name {str(path)!a} is no UTF-8; rename it") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder; `ValueError` where another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another run is at work in {folder}; wait for it or set --out"
            raise ValueError(message) from None
        yield
