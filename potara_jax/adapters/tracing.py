"""Models that are traced once for all programs which call them.

To trace a Flax model is slow, and a table of thirty programs traced its model forty
times. JAX keeps the trace of a function within `jax.jit`, and here it is inlined, so
that the programs are the same without it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np

_ARRAYS = (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic)


def traced_once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, traced once for each kind of its arguments.

    Arguments other than arrays, such as flags, are part of the kind. If one of them has
    no hash, or nothing is traced, `fn` is called as it is.

    Args:
      fn: a pure function of trees of arrays and of anything else, which returns arrays.
    """

    def of_parts(rest: Rest, arrays: dict[int, Any]) -> Any:
        args, kwargs = joined(arrays, rest)
        return fn(*args, **kwargs)

    traced = jax.jit(of_parts, static_argnums=0, inline=True)

    def call(*args: Any, **kwargs: Any) -> Any:
        arrays, rest = parted((args, kwargs))
        traces = any(isinstance(x, jax.core.Tracer) for x in arrays.values())
        if not traces or not all(isinstance(leaf, Hashable) for leaf in rest.others):
            return fn(*args, **kwargs)
        return traced(rest, arrays)

    return call


class Rest(NamedTuple):
    """A tree without its arrays.

    Attributes:
      structure: of the whole tree.
      others: its leaves, with None in the place of an array.
      types: of these; 2 and 2.0 are equal, but not alike.
    """

    structure: Any
    others: tuple[Any, ...]
    types: tuple[type, ...]


def parted(tree: Any) -> tuple[dict[int, Any], Rest]:
    """A tree's arrays (or their shapes), by number of the leaf, and the rest of it."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, _ARRAYS)}
    others = tuple(None if i in arrays else leaf for i, leaf in enumerate(leaves))
    return arrays, Rest(structure, others, tuple(map(type, others)))


def joined(arrays: dict[int, Any], rest: Rest) -> Any:
    """The tree with these arrays."""
    leaves = [arrays.get(i, other) for i, other in enumerate(rest.others)]
    return jax.tree.unflatten(rest.structure, leaves)
