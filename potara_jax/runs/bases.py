"""Pre-trained bases, kept between runs by a hash of what determines them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
    train: Callable[[], Params],
    log: Callable[[str], None],
) -> Params:
    """The parameters that `train()` returns, read from the cache if it has them.

    Args:
      folder: the cache. None keeps nothing on disk.
      recipe: every setting of the training, as JSON values. With the bytes of the
        examples and the version of jax it makes the hash.
      examples: what the base learns from, a pytree of arrays.
      train: trains the base. A damaged file is trained again.
      log: takes a line for the user.

    Returns:
      The parameters.
    """
    if folder is None:
        return _train(train, log)
    path = folder.expanduser() / "bases" / f"{_hash(recipe, examples)}.npz"
    if path.exists():
        try:
            return _load(path)
        except Exception:  # whatever a damaged file makes a reader raise
            log(f"the cached base {path} is damaged; training it again")
    params = _train(train, log)
    _save(path, params)
    return params


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
