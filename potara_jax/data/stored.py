"""Arrays that stay on the host, or in a file, while programs on the device read rows.

Dimension letters: `P` rows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from potara_jax.adapters.lora import Array


@jax.tree_util.register_static
class Stored:
    """An array `[P, ...]` outside the device.

    `stored[index]` is an array on the device, in jitted programs too: the host looks
    the rows up whenever the program gets there. As a pytree it has no leaves.

    Args:
      rows: `[P, ...]`, in memory or mapped from a file; nobody changes them while they
        are read.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    @property
    def shape(self) -> tuple[int, ...]:
        """`[P, ...]`."""
        return self.rows.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the rows."""
        return self.rows.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows on the host."""
        return np.array(self.rows, dtype, copy=copy)

    def __getitem__(self, index: Array) -> Array:
        """The rows at an index of any shape."""
        shape = (*index.shape, *self.shape[1:])
        result = jax.ShapeDtypeStruct(shape, self.dtype)
        look = lambda places: self.rows[np.asarray(places)]
        return jax.pure_callback(look, result, index, vmap_method="expand_dims")


def is_stored(x: Any) -> bool:
    """Whether something is a `Stored` array."""
    return isinstance(x, Stored)


def in_file(shape: tuple[int, ...], dtype: Any, folder: Path | None) -> np.ndarray:
    """Zeros in a file without a name, which is gone when the process ends.

    Args:
      shape: of the array.
      dtype: of the array.
      folder: where the file is; None: the system's, for temporary files.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype, "w+", shape=shape)
