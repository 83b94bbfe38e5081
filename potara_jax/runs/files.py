"""Files that are written as a whole, and folders that one process uses at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from potara_jax.adapters import folders

_LOCK = ".lock"


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as a whole."""
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO]:
    """A temporary file to write, which takes its place if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = folders.beside(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as a whole, with keys in their order; see `finite`."""
    write_text(path, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """A JSON value with null for numbers that are not finite, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
      ValueError: it is not one; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from None


def read_whole_json(path: Path, warn: Callable[[str], None]) -> Any | None:
    """Read a JSON object; None if the file is missing or, with a warning, damaged."""
    if not path.exists():
        return None
    try:
        content = read_json(path)
    except ValueError:
        content = None
    if isinstance(content, dict) and content:
        return content
    warn(f"{path} is damaged; making it again")
    return None


def read_json_lines(path: Path) -> list[Any]:
    """Read one JSON value per line, skipping what a killed run left unfinished."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [value for value in map(_parsed, lines) if value is not None]


def _parsed(line: bytes) -> Any | None:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


DATA = "data_digest"


def digest(paths: Sequence[Path]) -> str:
    """A digest of files, and of all files in folders.

    Raises:
      ValueError: a name is not UTF-8.
    """
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        for file in _files(path):
            total.update(_encoded(file.relative_to(path)))
            with open(file, "rb") as opened:
                total.update(hashlib.file_digest(opened, "blake2b").digest())
    return total.hexdigest()


def _files(path: Path) -> list[Path]:
    """A file, or all files in a folder and in those that it links to."""
    if not path.is_dir():
        _encoded(path)
        return [path] if path.is_file() else []
    walked = os.walk(path, followlinks=True)
    paths = (Path(folder, name) for folder, _, names in walked for name in names)
    return sorted(path for path in paths if path.is_file())


def _encoded(path: Path) -> bytes:
    try:
        return str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name {str(path)!a} is not UTF-8; rename it") from None


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Lock a folder, which is made, and removed again if nothing is put into it.

    Raises:
      ValueError: another process has locked it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another run is using {folder}; wait for it or set another out"
            ) from None
        try:
            yield
        finally:
            _remove_unused(made)


def _remove_unused(made: Sequence[Path]) -> None:
    """Remove folders, the inner ones first, of which none holds more than the next."""
    if made and [path.name for path in made[0].iterdir()] == [_LOCK]:
        (made[0] / _LOCK).unlink()
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()
