"""The communication ledger: bytes of the values that travel."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Part(NamedTuple):
    """A payload of which only a part travels; its other entries are padding.

    Attributes:
      value: the payload.
      kept: how many of every `of` entries travel, such as a client's rank, int32; it
        may differ by client.
      of: such as the largest rank, int32.
    """

    value: Any
    kept: Array
    of: Array


class Either(NamedTuple):
    """Payloads that say the same: the one of fewer bytes travels."""

    first: Any
    second: Any


def payload_bytes(payload: Any) -> Array | int:
    """Bytes of a pytree of arrays, from the shapes and dtypes of its leaves.

    An int, unless the pytree contains a `Part` or an `Either`: then an array, uint32.

    Examples:
      >>> payload_bytes({"a": jnp.zeros((64, 8)), "b": jnp.zeros(64, jnp.bfloat16)})
      2176
    """
    parts = jax.tree.leaves(payload, is_leaf=_is_special)
    return sum(_bytes(part) for part in parts)


def _bytes(part: Part | Either | Array) -> Array | int:
    if isinstance(part, Either):
        return jnp.minimum(payload_bytes(part.first), payload_bytes(part.second))
    if isinstance(part, Part):
        whole = jnp.asarray(payload_bytes(part.value), jnp.uint32)
        kept, of = (jnp.asarray(x, jnp.uint32) for x in part[1:])
        return whole // of * kept + whole % of * kept // of
    return math.prod(part.shape) * jnp.dtype(part.dtype).itemsize


def _is_special(x: Any) -> bool:
    return isinstance(x, Part | Either)
