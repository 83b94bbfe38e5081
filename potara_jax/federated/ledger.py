"""The communication ledger: bytes of the values that travel."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp


def payload_bytes(payload: Any) -> int:
    """Bytes of a pytree of arrays, from its leaves' shapes and dtypes."""
    leaves = jax.tree.leaves(payload)
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in leaves)
