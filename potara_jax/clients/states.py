"""What every client keeps, on the host or on disk: only a cohort's is on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np


class ClientStates:
    """Pytrees `[C, ...]` of arrays on the host, of which rows are taken and put back.

    like: one client's pytree, of arrays or their shapes. folder: where the arrays are
    files, mapped into memory, so that they may be larger than it; what is there already
    is kept. Default: in memory. Rows that were never put back are not `begun`, and take
    no memory and no space on disk.
    """

    def __init__(self, like: Any, clients: int, folder: Path | None = None):
        self._structure = jax.tree.structure(like)
        shapes = [
            ((clients, *x.shape), np.dtype(x.dtype)) for x in jax.tree.leaves(like)
        ]
        self._leaves = [
            _array(folder and folder / f"state-{i}.npy", *shape)
            for i, shape in enumerate(shapes)
        ]
        self.begun = _array(folder and folder / "begun.npy", (clients,), np.dtype(bool))

    def take(self, index: np.ndarray) -> Any:
        """Rows `[c, ...]`; zeros for clients that have not begun."""
        return jax.tree.unflatten(self._structure, [x[index] for x in self._leaves])

    def put(self, index: np.ndarray, rows: Any) -> None:
        """Put rows `[c, ...]` back; these clients have begun."""
        for leaf, new in zip(self._leaves, jax.tree.leaves(rows), strict=True):
            leaf[index] = new
        self.begun[index] = True

    def flush(self) -> None:
        """Wait until everything is in its files, where it is in files."""
        for leaf in (*self._leaves, self.begun):
            if isinstance(leaf, np.memmap):
                leaf.flush()

    @property
    def nbytes(self) -> int:
        """Bytes of all clients' rows, begun or not."""
        return sum(leaf.nbytes for leaf in self._leaves)


def _array(path: Path | None, shape, dtype) -> np.ndarray:
    if path is None:
        return np.zeros(shape, dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return np.lib.format.open_memmap(path, "w+", dtype, shape)
    found = np.lib.format.open_memmap(path, "r+")
    if (found.shape, found.dtype) != (shape, dtype):
        raise ValueError(
            f"{path} holds {found.dtype}{list(found.shape)}, not {dtype}{list(shape)}: "
            "it is of another federation; remove it or name another folder"
        )
    return found
