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
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

_KEPT = 2


class Saved(NamedTuple):
    """A phase after a round: its state, one record a round, and seconds so far."""

    round: int
    state: Any
    history: list[dict]
    seconds: float


def save(folder: Path, saved: Saved) -> None:
    """Write a checkpoint and remove all but the last two."""
    tree = _pack(saved)
    target = folder.resolve() / str(saved.round)
    shutil.rmtree(target, ignore_errors=True)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(target, tree)
    for old in _rounds(folder)[:-_KEPT]:
        shutil.rmtree(folder / str(old), ignore_errors=True)


def restore(folder: Path, like: Any, warn: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint that is whole, or None.

    like: a state of the same structure. Every damaged checkpoint is passed over with a
    line to `warn` and removed.
    """
    for number in reversed(_rounds(folder)):
        path = folder / str(number)
        try:
            return _unpack(_read(path), number, like)
        except Exception as error:  # whatever a damaged file makes a reader raise
            reason = str(error).strip().split("\n")[0][:120]
            warn(f"checkpoint {path} is damaged ({reason}); using the one before it")
            shutil.rmtree(path, ignore_errors=True)
    return None


def last_round(folder: Path) -> int:
    """The newest checkpoint's round, whole or not; 0 where there is none."""
    return max(_rounds(folder), default=0)


def _rounds(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def _read(path: Path) -> dict:
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(path.resolve())


def _pack(saved: Saved) -> dict:
    """Few arrays, as each costs time: the state's numbers in a row, by dtype."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(saved.state)]
    history = np.frombuffer(json.dumps(saved.history).encode(), np.uint8)
    joined = {
        f"state_{dtype}": np.concatenate([x.ravel() for x in own])
        for dtype, own in _by_dtype(leaves).items()
    }
    digest = np.frombuffer(_digest(leaves, history), np.uint8)
    seconds = np.array(saved.seconds)
    return joined | {"history": history, "digest": digest, "seconds": seconds}


def _by_dtype(leaves: list[np.ndarray]) -> dict[Any, list[np.ndarray]]:
    kinds = dict.fromkeys(leaf.dtype for leaf in leaves if leaf.size)
    return {kind: [leaf for leaf in leaves if leaf.dtype == kind] for kind in kinds}


def _unpack(tree: dict, number: int, like: Any) -> Saved:
    history = np.asarray(tree["history"])
    leaves = _split(tree, jax.tree.leaves(like))
    if _digest(leaves, history) != np.asarray(tree["digest"]).tobytes():
        raise ValueError("its content does not fit its digest")
    state = jax.tree.unflatten(jax.tree.structure(like), map(jax.numpy.asarray, leaves))
    rounds = json.loads(history.tobytes())
    return Saved(number, state, rounds, float(tree["seconds"]))


def _split(tree: dict, like: list) -> list[np.ndarray]:
    """The state's arrays, of the shapes and dtypes that are expected."""
    joined = {name: np.asarray(x) for name, x in tree.items() if "state_" in name}
    expected = collections.Counter()
    for leaf in like:
        expected[f"state_{leaf.dtype}"] += leaf.size
    if expected != collections.Counter({name: x.size for name, x in joined.items()}):
        raise ValueError("its arrays have other shapes than this run's")
    return [_next(joined, f"state_{leaf.dtype}", leaf) for leaf in like]


def _next(joined: dict[str, np.ndarray], name: str, leaf) -> np.ndarray:
    rest = joined.get(name, np.zeros(0, leaf.dtype))
    first, joined[name] = np.split(rest, [leaf.size])
    return first.reshape(leaf.shape)


def _digest(leaves, history) -> bytes:
    total = hashlib.blake2b()
    for leaf in (*leaves, history):
        total.update(f"{leaf.dtype}{leaf.shape}".encode())
        total.update(np.ascontiguousarray(leaf).view(np.uint8))
    return total.digest()
