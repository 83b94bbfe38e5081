"""Random keys by purpose: what one purpose draws says nothing about another.

A purpose's key is folded with a hash of its name. So it does not depend on which other
purposes there are, and is none of the keys that are folded with small numbers: those of
clients, rounds and examples, or the parts of `jax.random.split`.
"""

from __future__ import annotations

import typing
import zlib
from typing import Literal

import jax
import jax.numpy as jnp

Purpose = Literal[
    # of a cell: what it trains, and what it measures
    "adapter",
    "federated",
    "local",
    "fine-tuning",
    "independent",
    "merging",
    "newcomers",
    # of a federation: who is drawn for a round, and the clients' own keys
    "cohorts",
    "clients",
    "states",
    # of a client in a round
    "batches",
    "steps",
    "samples",
    "factors",
    "stragglers",
    "dropout",
    "compression",
    "noise",
    # of a client's merge, whose samples are numbered
    "merge",
    "bootstrap",
]
PURPOSES: tuple[Purpose, ...] = typing.get_args(Purpose)


def subkey(key: jax.Array, purpose: Purpose) -> jax.Array:
    """The key of one purpose; `key` may be used for the others too.

    Args:
      key: may be used for the other purposes too.
      purpose: what to draw with it.

    Examples:
      >>> key = jax.random.key(0)
      >>> bool(subkey(key, "batches") == subkey(key, "dropout"))
      False
    """
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))


def check(key: jax.Array) -> None:
    """Raise `ValueError` if something else is given for a key."""
    if isinstance(key, jax.Array):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if key.shape == (() if typed else (2,)):
            return
    number = key if isinstance(key, int) else 0
    raise ValueError(f"key is {key!r}: it must be a key, jax.random.key({number})")
