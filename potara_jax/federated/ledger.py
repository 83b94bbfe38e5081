"""The communication ledger: bytes of the values that travel."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Part(NamedTuple):
    """A payload of which only a part travels: the rest of its entries is padding.

    `kept` of every `of` entries travel, such as a client's own rank of the largest.
    Both are int32, `kept` may differ by client.
    """

    value: Any
    kept: Array
    of: Array


def payload_bytes(payload: Any) -> Array | int:
    """Bytes of a pytree of arrays, from its leaves' shapes and dtypes.

    An int, unless a `Part` of it depends on values: then an array.
    """
    parts = jax.tree.leaves(payload, is_leaf=_is_part)
    return sum(_bytes(part) for part in parts)


def _bytes(part) -> Array | int:
    if _is_part(part):
        whole = payload_bytes(part.value)
        return (whole * (part.kept / part.of)).astype(jnp.uint32)
    return math.prod(part.shape) * jnp.dtype(part.dtype).itemsize


def _is_part(x) -> bool:
    return isinstance(x, Part)
