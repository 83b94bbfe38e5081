"""Checkpoints of a phase between its rounds, through Orbax.

Each is a folder named by its round that holds the state's arrays, the history of the
rounds so far and a digest of both. The last two are kept: one that is truncated or
damaged is reported, and the one before it is used.
"""

from __future__ import annotations

import collections
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

_KEPT = 2
_UNFINISHED = ".orbax-checkpoint-tmp"


class Checkpoint(NamedTuple):
    """A phase after a round: its state, one record a round, and seconds so far."""

    round: int
    state: Any
    history: list[dict[str, Any]]
    seconds: float


def saver(folder: Path, checkpoint: Checkpoint) -> Callable[[], None]:
    """What writes a checkpoint, copied here, and removes all but the last two."""
    return partial(_write, folder, checkpoint.round, _pack(checkpoint))


def _write(folder: Path, number: int, tree: dict[str, Any]) -> None:
    target = folder.resolve() / str(number)
    shutil.rmtree(target, ignore_errors=True)
    with _checkpointer() as checkpointer:
        checkpointer.save(target, tree)
    for old in _rounds(folder)[:-_KEPT]:
        shutil.rmtree(folder / str(old), ignore_errors=True)


def restore(folder: Path, like: Any, warn: Callable[[str], None]) -> Checkpoint | None:
    """Read the newest undamaged checkpoint of a folder, if it has one.

    Args:
      folder: the folder of a phase.
      like: a state of the same structure.
      warn: takes a line for the user about each damaged checkpoint, which is removed.
    """
    _remove_unfinished(folder)
    for number in reversed(_rounds(folder)):
        path = folder / str(number)
        try:
            return _unpack(_read(path), number, like)
        except Exception as error:  # whatever a damaged file makes a reader raise
            reason = str(error).strip().split("\n")[0][:120]
            warn(f"checkpoint {path} is damaged ({reason}); using the one before it")
            shutil.rmtree(path, ignore_errors=True)
    return None


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp  # takes 0.3 s, and most commands need no checkpoint

    return ocp.PyTreeCheckpointer()


def _remove_unfinished(folder: Path) -> None:
    """Remove what Orbax has written of a checkpoint when its process was killed."""
    for path in folder.glob(f"*{_UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _rounds(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def _read(path: Path) -> dict[str, Any]:
    with _checkpointer() as checkpointer:
        return checkpointer.restore(path.resolve())


def _pack(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state's numbers in one array per dtype, since each array costs time."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoint.state)]
    history = np.frombuffer(json.dumps(checkpoint.history).encode(), np.uint8)
    joined = {
        f"state_{dtype}": np.concatenate([leaf.ravel() for leaf in same_dtype])
        for dtype, same_dtype in _by_dtype(leaves).items()
    }
    digest = np.frombuffer(_digest(leaves, history), np.uint8)
    seconds = np.array(checkpoint.seconds)
    return joined | {"history": history, "digest": digest, "seconds": seconds}


def _by_dtype(leaves: Sequence[np.ndarray]) -> dict[Any, list[np.ndarray]]:
    dtypes = dict.fromkeys(leaf.dtype for leaf in leaves if leaf.size)
    return {dtype: [x for x in leaves if x.dtype == dtype] for dtype in dtypes}


def _unpack(tree: Mapping[str, Any], number: int, like: Any) -> Checkpoint:
    history = np.asarray(tree["history"])
    leaves = _split(tree, jax.tree.leaves(like))
    if _digest(leaves, history) != np.asarray(tree["digest"]).tobytes():
        raise ValueError("its content does not match its digest")
    state = jax.tree.unflatten(jax.tree.structure(like), map(jax.numpy.asarray, leaves))
    rounds = json.loads(history.tobytes())
    return Checkpoint(number, state, rounds, float(tree["seconds"]))


def _split(tree: Mapping[str, Any], like: Sequence[Any]) -> list[np.ndarray]:
    """The state's arrays, in the shapes and dtypes of `like`."""
    joined = {name: np.asarray(x) for name, x in tree.items() if "state_" in name}
    expected: collections.Counter[str] = collections.Counter()
    for leaf in like:
        expected[f"state_{leaf.dtype}"] += leaf.size
    if expected != collections.Counter({name: x.size for name, x in joined.items()}):
        raise ValueError("its arrays have other shapes than this run's")
    return [_take(joined, f"state_{leaf.dtype}", leaf) for leaf in like]


def _take(joined: dict[str, np.ndarray], name: str, like: Any) -> np.ndarray:
    """The next numbers of an array, which are removed from it, in a leaf's shape."""
    numbers = joined.get(name, np.zeros(0, like.dtype))
    first, joined[name] = np.split(numbers, [like.size])
    return first.reshape(like.shape)


def _digest(leaves: Sequence[np.ndarray], history: np.ndarray) -> bytes:
    total = hashlib.blake2b()
    for leaf in (*leaves, history):
        total.update(f"{leaf.dtype}{leaf.shape}".encode())
        total.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return total.digest()
