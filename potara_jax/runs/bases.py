"""Pre-trained bases, kept between runs by the hash of what determines them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from potara_jax.runs import files
from potara_jax.adapters.lora import Params


def cached_base(
    folder: Path,
    recipe: dict[str, Any],
    data: Any,
    train: Callable[[], Params],
    note: Callable[[str], None],
) -> Params:
    """The parameters that `train()` gives, from the cache where it has them.

    data: what it learns from, a tree of arrays.
    recipe: every setting of the training, as JSON values; with the data's bytes and the
    version of jax it makes the hash. A damaged file is trained anew.
    """
    path = folder.expanduser() / "bases" / f"{_hash(recipe, data)}.npz"
    if path.exists():
        try:
            return _load(path)
        except Exception:  # whatever a damaged file makes a reader raise
            note(f"the cached base {path} is damaged; training it anew")
    note("pre-training the base")
    params = jax.block_until_ready(train())
    _save(path, params)
    return params


def _hash(recipe, data) -> str:
    text = json.dumps({**recipe, "jax": jax.__version__}, sort_keys=True)
    total = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves(data):
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()[:20]


def _save(path: Path, params) -> None:
    flat = flatten_dict(dict(params), sep="/")
    with files.replacing(path) as file:
        np.savez(file, **{name: np.asarray(value) for name, value in flat.items()})


def _load(path: Path) -> Params:
    with np.load(path) as file:
        flat = {name: jnp.asarray(file[name]) for name in file.files}
    return unflatten_dict(flat, sep="/")
