"""Folders that appear whole or not at all, and replace nothing but their like."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


def check_free(
    folder: Path, *, what: str, marker: str, own: Collection[str], overwrite: bool
) -> None:
    """Raise `ValueError` where a folder cannot be written or be replaced.

    what: is to be written. marker: a file that such a folder has. own: all that it may
      hold. overwrite: replace what is there, where it is such a folder.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not overwrite:
        raise ValueError(f"{folder} is there already; name another (or --overwrite it)")
    if not (folder / marker).is_file():
        raise ValueError(f"{folder} holds no {what}, so it is not overwritten")
    more = sorted({path.name for path in folder.iterdir()} - set(own))
    if more:
        raise ValueError(
            f"{folder} holds more than a {what} ({more[0]}), so it is not "
            "overwritten; name another"
        )


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to fill beside the one that appears, complete, when all is well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    name = f".{folder.name}."
    beside = Path(tempfile.mkdtemp(prefix=name, dir=folder.parent.resolve()))
    try:
        fresh = beside / "new"
        fresh.mkdir()
        yield fresh
        for file in fresh.iterdir():
            _flush(file)
        _put(fresh, folder, beside / "old")
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _put(fresh: Path, folder: Path, old: Path) -> None:
    """Rename a folder to its place; what was there comes back if that fails."""
    replaced = folder.exists()
    if replaced:
        os.rename(folder, old)
    try:
        os.rename(fresh, folder)
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
