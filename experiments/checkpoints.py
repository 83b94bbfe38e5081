"""Checkpoints of a phase between its rounds, through Orbax.

Each is a folder named by its round that holds the state's arrays, the history of the
rounds so far and a digest of both. The last two are kept: one that is truncated or
damaged is reported, and the one before it is used.
"""

from __future__ import annotations

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
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(saved.state)]
    history = np.frombuffer(json.dumps(saved.history).encode(), np.uint8)
    tree = {f"leaf_{i}": leaf for i, leaf in enumerate(leaves)} | {"history": history}
    digest = np.frombuffer(_digest(leaves, history), np.uint8)
    return tree | {"digest": digest, "seconds": np.array(saved.seconds)}


def _unpack(tree: dict, number: int, like: Any) -> Saved:
    count = sum(name.startswith("leaf_") for name in tree)
    leaves = [np.asarray(tree[f"leaf_{i}"]) for i in range(count)]
    history = np.asarray(tree["history"])
    if _digest(leaves, history) != np.asarray(tree["digest"]).tobytes():
        raise ValueError("its content does not fit its digest")
    _check_shapes(leaves, like)
    state = jax.tree.unflatten(jax.tree.structure(like), map(jax.numpy.asarray, leaves))
    rounds = json.loads(history.tobytes())
    return Saved(number, state, rounds, float(tree["seconds"]))


def _check_shapes(leaves, like):
    expected = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(like)]
    found = [(leaf.shape, leaf.dtype) for leaf in leaves]
    if expected != found:
        raise ValueError("its arrays have other shapes than this run's")


def _digest(leaves, history) -> bytes:
    total = hashlib.sha256()
    for leaf in (*leaves, history):
        total.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
    return total.digest()
