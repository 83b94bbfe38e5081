"""Write a folder as a whole or not at all, and replace only a folder of its kind."""

from __future__ import annotations

import os
import shutil
import tempfile
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
        raise ValueError(f"{folder} already exists; choose another (or --overwrite it)")
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
    parent = folder.parent.resolve()
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=parent))
    try:
        new = temporary / "new"
        new.mkdir()
        yield new
        for file in new.iterdir():
            _flush(file)
        _replace(folder, new, temporary / "old")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
