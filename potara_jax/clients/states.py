"""What every client keeps, on the host or on disk: only a cohort's is on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np


class ClientStates:
    """Pytrees `[C, ...]` of arrays on the host; rows are taken out and put back.

    `begun` `[C]` says whose rows were ever put back; the others take no memory, and no
    space on disk. `rounds` is the number of the last round that put rows back, 0 before
    the first: a checkpoint of an earlier round does not fit these states any more.
    """

    def __init__(self, like: Any, clients: int, folder: Path | None = None) -> None:
        """Allocate all clients' arrays, or map their files into memory.

        Args:
          like: one client's pytree, of arrays or of their shapes.
          clients: `C`.
          folder: where the arrays are files, so that they may be larger than memory;
            existing files are kept. Default: in memory.

        Raises:
          ValueError: the folder holds the states of another federation.
        """
        self.clients = clients
        self._structure = jax.tree.structure(like)
        self._like = [(x.shape, np.dtype(x.dtype)) for x in jax.tree.leaves(like)]
        self._folder = folder
        self._open()

    def _open(self) -> None:
        self._leaves = [
            self._array(f"state-{i}", shape, dtype)
            for i, (shape, dtype) in enumerate(self._like)
        ]
        self.begun = self._array("begun", (), np.dtype(bool))
        self._rounds = self._array("rounds", (), np.dtype(np.int32), rows=1)

    def _array(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype, rows: int = 0
    ) -> np.ndarray:
        path = None if self._folder is None else self._folder / f"{name}.npy"
        return _array(path, (rows or self.clients, *shape), dtype)

    @property
    def rounds(self) -> int:
        """The number of the last round that put rows back; 0 before the first."""
        return int(self._rounds[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all clients' rows, begun or not."""
        return sum(leaf.nbytes for leaf in self._leaves)

    def take(self, index: np.ndarray) -> Any:
        """Rows `[c, ...]`; zeros for clients that have not begun."""
        return jax.tree.unflatten(self._structure, [x[index] for x in self._leaves])

    def put(self, index: np.ndarray, rows: Any, *, rounds: int) -> None:
        """Put rows `[c, ...]` back after so many rounds; these clients have begun."""
        self._rounds[0] = rounds  # first, so that half-written rows are known as such
        for leaf, new in zip(self._leaves, jax.tree.leaves(rows), strict=True):
            leaf[index] = new
        self.begun[index] = True

    def clear(self) -> None:
        """Forget all rows: no client has begun."""
        for path in self._folder.glob("*.npy") if self._folder else ():
            path.unlink()
        self._open()

    def flush(self) -> None:
        """Wait until all files are written, if the arrays are files."""
        for leaf in (*self._leaves, self.begun, self._rounds):
            if isinstance(leaf, np.memmap):
                leaf.flush()


def _array(path: Path | None, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if path is None:
        return np.zeros(shape, dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return np.lib.format.open_memmap(path, "w+", dtype, shape)
    kept = np.lib.format.open_memmap(path, "r+")
    if (kept.shape, kept.dtype) != (shape, dtype):
        raise ValueError(
            f"{path} holds {kept.dtype}{list(kept.shape)}, not {dtype}{list(shape)}: "
            "it is of another federation; remove it or name another folder"
        )
    return kept
