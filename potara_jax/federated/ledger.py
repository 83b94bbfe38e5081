"""The communication ledger: bytes of the values that travel."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Part(NamedTuple):
    """A payload of which only a part travels; its other entries are padding.

    `kept` of every `of` entries travel, such as a client's rank of the largest rank.
    Both are int32; `kept` may differ by client.
    """

    value: Any
    kept: Array
    of: Array


def payload_bytes(payload: Any) -> Array | int:
    """Bytes of a pytree of arrays, from the shapes and dtypes of its leaves.

    An int, unless the pytree contains a `Part`: then an array.
    """
    parts = jax.tree.leaves(payload, is_leaf=_is_part)
    return sum(_bytes(part) for part in parts)


def _bytes(part: Part | Array) -> Array | int:
    if isinstance(part, Part):
        whole = payload_bytes(part.value)
        return (whole * (part.kept / part.of)).astype(jnp.uint32)
    return math.prod(part.shape) * jnp.dtype(part.dtype).itemsize


def _is_part(x: Any) -> bool:
    return isinstance(x, Part)
