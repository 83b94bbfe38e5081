"""Models that are traced once for all programs which call them.

To trace a Flax model is slow: a table of thirty programs that trace a model forty times
waits longer for that than for its training. JAX keeps the trace of a function within
`jax.jit`, and here it is inlined, so that the programs are the same without it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

_ARRAYS = (jax.Array, np.ndarray, np.generic)


def traced_once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, traced once for each kind of its arguments.

    Arguments other than arrays, such as flags, are part of the kind. If one of them has
    no hash, or nothing is traced, `fn` is called as it is.

    Args:
      fn: a pure function of trees of arrays and of anything else, which returns arrays.
    """

    def of_leaves(kind: tuple[Any, tuple[Any, ...]], arrays: list[Any]) -> Any:
        args, kwargs = _joined(*kind, arrays)
        return fn(*args, **kwargs)

    traced = jax.jit(of_leaves, static_argnums=0, inline=True)

    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        others = tuple(_ARRAY if _is_array(leaf) else leaf for leaf in leaves)
        traces = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        if not traces or not all(isinstance(leaf, Hashable) for leaf in others):
            return fn(*args, **kwargs)
        return traced((tree, others), [leaf for leaf in leaves if _is_array(leaf)])

    return call


_ARRAY = object()  # in the place of an array


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, _ARRAYS)


def _joined(tree: Any, others: tuple[Any, ...], arrays: list[Any]) -> Any:
    remaining = iter(arrays)
    leaves = [next(remaining) if leaf is _ARRAY else leaf for leaf in others]
    return jax.tree.unflatten(tree, leaves)
