"""LEAF's data sets, whose users are clients (Caldas et al. 2018, arXiv 1812.01097).

A file has `users`, and `user_data` with the inputs `x` and the labels `y` of each.
Inputs are texts, or images as rows of numbers from 0 to 1.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_HEAD = 4096  # bytes in which the first key of a file is
_BLANKS = {" ": "space", "\n": "newline", "\t": "tab", "": "nothing"}


class User(NamedTuple):
    """A user's inputs and labels."""

    inputs: Sequence[Any]
    labels: Sequence[Any]

    @property
    def of_texts(self) -> bool:
        """Whether the inputs are texts."""
        return isinstance(self.inputs[0], str) or (
            isinstance(self.inputs[0], list) and isinstance(self.inputs[0][-1], str)
        )


def is_leaf(path: Path) -> bool:
    """Whether a file looks like LEAF's."""
    if path.suffix != ".json" or not path.is_file():
        return False
    with open(path, "rb") as file:
        return b'"users"' in file.read(_HEAD)


def files_of(path: Path) -> list[Path]:
    """LEAF's files: a file itself, or those in a folder, or in its train and test."""
    if not path.is_dir():
        return [path] if is_leaf(path) else []
    folders = [path, *(path / part for part in ("train", "test"))]
    files = [sorted(each.glob("*.json")) for each in folders if each.is_dir()]
    return [file for each in files for file in each if is_leaf(file)]


def users(path: Path) -> dict[str, User]:
    """The users of a file, or of the files in a folder, in their order.

    Raises:
      ValueError: a file is damaged, or a user has no examples.
    """
    joined: dict[str, User] = {}
    for file in files_of(path):
        for name, user in _read(file, file.stat().st_mtime_ns).items():
            known = joined.get(name, User((), ()))
            joined[name] = User(
                [*known.inputs, *user.inputs], [*known.labels, *user.labels]
            )
    return joined


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> dict[str, User]:
    """The users of a file, which is read again once it has changed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        data = content["user_data"]
        return {
            name: User(data[name]["x"], data[name]["y"]) for name in content["users"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged: it must have users, and user_data with x and y of "
            f"each ({type(error).__name__}: {error})"
        ) from None


def texts(user: User) -> tuple[list[str], list[str]]:
    """A user's texts and labels; a label of blanks has their name.

    Where an input is a list, as of Sentiment140, its longest text is taken.
    """
    inputs = [x if isinstance(x, str) else _longest(x) for x in user.inputs]
    labels = [y if isinstance(y, str) else json.dumps(y) for y in user.labels]
    return inputs, [_BLANKS.get(label, label) for label in labels]


def _longest(values: Sequence[Any]) -> str:
    return max((x for x in values if isinstance(x, str)), key=len)


def pixels(user: User) -> np.ndarray:
    """A user's images, as they are: rows of numbers."""
    return np.asarray(user.inputs, np.float32)
