"""Pre-trained bases, kept between runs by a hash of what determines them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from potara_jax.adapters.lora import Params
from potara_jax.runs import files


def cached_base(
    folder: Path | None,
    recipe: Mapping[str, Any],
    examples: Any,
    train: Callable[[Part | None], Params],
    log: Callable[[str], None],
) -> Params:
    """The parameters that `train(part)` returns, read from the cache if it has them.

    Args:
      folder: the cache. None keeps nothing on disk.
      recipe: every setting of the training, as JSON values. With the bytes of the
        examples and the version of jax it makes the hash.
      examples: what the base learns from, a pytree of arrays.
      train: trains the base. A damaged file is trained again. `part` keeps what an
        interrupted training has reached; None without a cache.
      log: takes a line for the user.

    Returns:
      The parameters.
    """
    if folder is None:
        return _train(lambda: train(None), log)
    path = folder.expanduser() / "bases" / f"{_hash(recipe, examples)}.npz"
    if path.exists():
        try:
            return _load(path)
        except Exception:  # whatever a damaged file makes a reader raise
            log(f"the cached base {path} is damaged; training it again")
    part = Part(path.with_suffix(".part.npz"), log)
    params = _train(lambda: train(part), log)
    _save(path, params)
    part.remove()
    return params


class Part(NamedTuple):
    """A file that keeps a tree of arrays while a base is trained.

    Attributes:
      path: of the file.
      log: takes a line for the user.
    """

    path: Path
    log: Callable[[str], None]

    def save(self, tree: Any) -> None:
        """Replace what is kept."""
        arrays: Any = {
            str(n): np.asarray(x) for n, x in enumerate(jax.tree.leaves(tree))
        }
        with files.atomic_file(self.path) as file:
            np.savez(file, **arrays)

    def load(self, like: Any) -> Any | None:
        """What is kept, of the structure of `like`; None if nothing, or damaged."""
        if not self.path.exists():
            return None
        leaves, structure = jax.tree.flatten(like)
        try:
            with np.load(self.path) as file:
                kept = [jnp.asarray(file[str(n)]) for n in range(len(file.files))]
        except Exception:  # whatever a damaged file makes a reader raise
            kept = []
        if [(x.shape, x.dtype) for x in kept] != [(x.shape, x.dtype) for x in leaves]:
            self.log(f"{self.path} is damaged; training the base from its beginning")
            return None
        return jax.tree.unflatten(structure, kept)

    def remove(self) -> None:
        """Forget what is kept."""
        self.path.unlink(missing_ok=True)


def _train(train: Callable[[], Params], log: Callable[[str], None]) -> Params:
    log("pre-training the base")
    return jax.block_until_ready(train())


def _hash(recipe: Mapping[str, Any], examples: Any) -> str:
    text = json.dumps({**recipe, "jax": jax.__version__}, sort_keys=True)
    total = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves(examples):
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()[:20]


def _save(path: Path, params: Params) -> None:
    flat = flatten_dict(dict(params), sep="/")
    arrays: Any = {name: np.asarray(value) for name, value in flat.items()}
    with files.atomic_file(path) as file:
        np.savez(file, **arrays)


def _load(path: Path) -> Params:
    with np.load(path) as file:
        flat = {name: jnp.asarray(file[name]) for name in file.files}
    return unflatten_dict(flat, sep="/")
