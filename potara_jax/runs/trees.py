"""Trees of arrays in a file: dictionaries, tuples, and this package's named tuples."""

from __future__ import annotations

import importlib
import io
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_STRUCTURE = "structure"
_PACKAGE = "potara_jax."


def to_bytes(tree: Any) -> bytes:
    """A tree as the content of a file.

    Raises:
      TypeError: something is neither an array nor a container of the module.
    """
    leaves: list[np.ndarray] = []
    structure = json.dumps(_packed(tree, leaves))
    arrays: Any = {str(number): leaf for number, leaf in enumerate(leaves)}
    arrays[_STRUCTURE] = np.array(structure)
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def from_bytes(content: bytes) -> Any:
    """The tree in a file's content.

    Raises:
      Exception: the content is damaged; which one depends on the damage.
    """
    with np.load(io.BytesIO(content)) as file:
        leaves = [jnp.asarray(file[str(n)]) for n in range(len(file.files) - 1)]
        return _unpacked(json.loads(str(file[_STRUCTURE])), leaves)


def _packed(tree: Any, leaves: list[np.ndarray]) -> Any:
    """A tree as JSON, with the numbers of its leaves, which are appended."""
    kind = type(tree)
    if tree is None:
        return None
    if isinstance(tree, jax.Array | np.ndarray):
        leaf = np.asarray(tree)
        if leaf.dtype.kind not in "biuf":
            raise TypeError(f"{leaf.dtype} cannot be kept")
        leaves.append(leaf)
        return len(leaves) - 1
    if kind is dict and all(isinstance(name, str) for name in tree):
        return {"dict": {name: _packed(x, leaves) for name, x in tree.items()}}
    if kind is tuple:
        return {"tuple": [_packed(x, leaves) for x in tree]}
    if isinstance(tree, tuple) and kind.__module__.startswith(_PACKAGE):
        parts = [_packed(x, leaves) for x in tree]
        return {"module": kind.__module__, "name": kind.__qualname__, "parts": parts}
    raise TypeError(f"{kind.__name__} cannot be kept")


def _unpacked(structure: Any, leaves: list[jax.Array]) -> Any:
    if structure is None:
        return None
    if isinstance(structure, int):
        return leaves[structure]
    if "dict" in structure:
        return {n: _unpacked(x, leaves) for n, x in structure["dict"].items()}
    if "tuple" in structure:
        return tuple(_unpacked(x, leaves) for x in structure["tuple"])
    if not structure["module"].startswith(_PACKAGE):
        raise ValueError(f"{structure['module']} is not of this package")
    kind = getattr(importlib.import_module(structure["module"]), structure["name"])
    return kind(*(_unpacked(x, leaves) for x in structure["parts"]))
