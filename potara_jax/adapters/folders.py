"""Write a folder as a whole or not at all, and replace only a folder of its kind.

What a killed process leaves unfinished beside a folder or file is removed when that is
written the next time.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path


def check_free(
    folder: Path, *, kind: str, marker: str, names: Collection[str], overwrite: bool
) -> None:
    """Check that a folder can be written.

    Args:
      folder: the folder.
      kind: what it is to hold, for the error, such as "PEFT adapter".
      marker: a file that every folder of this kind has.
      names: all files that a folder of this kind may have.
      overwrite: allow an existing folder of this kind to be replaced.

    Raises:
      ValueError: the folder exists and must not be replaced.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not overwrite:
        raise ValueError(f"{folder} already exists; choose another, or set overwrite")
    if not (folder / marker).is_file():
        raise ValueError(f"{folder} holds no {kind}, so it is not overwritten")
    others = sorted({path.name for path in folder.iterdir()} - set(names))
    if others:
        raise ValueError(
            f"{folder} holds more than a {kind} ({others[0]}), so it is not "
            "overwritten; choose another"
        )


@contextmanager
def atomic_folder(folder: Path) -> Generator[Path]:
    """An empty folder to fill, which takes its place if the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(folder.parent.resolve() / folder.name)
    try:
        new = temporary / "new"
        new.mkdir(parents=True)
        yield new
        for file in new.iterdir():
            _flush(file)
        _replace(folder, new, temporary / "old")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def beside(path: Path) -> Path:
    """A hidden name beside a path for what is to replace it, of this process.

    Removes what processes that have ended, of this machine, left under such names.
    """
    prefix = f".{path.name}."
    for other in path.parent.glob(f"{glob.escape(prefix)}*"):
        process = other.name.removeprefix(prefix)
        if process.isdecimal() and not _is_alive(int(process)):
            _remove(other)
    return path.with_name(f"{prefix}{os.getpid()}")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _replace(folder: Path, new: Path, old: Path) -> None:
    """Rename `new` to `folder`; restore what `folder` was if that fails."""
    replaced = folder.exists()
    if replaced:
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        if replaced:
            os.rename(old, folder)
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
