"""A federation as arrays: a pool of examples on the device, and who holds which.

Dimension letters: `P` pool, `C` clients, `N` examples of the largest client, `M` test
examples.

Clients hold indices into one resident pool, padded to the largest client. The number of
real examples goes with them, and every consumer draws by that number, so padding
changes no result, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Batch(NamedTuple):
    """Examples: `inputs` `[B, ...]` and `labels` `[B]` (int32)."""

    inputs: Array
    labels: Array


class Ragged(NamedTuple):
    """Each client's examples: `index` `[C, N]` into the pool, `count` `[C]`, int32.

    Only the first `count` indices of a client are real. `share` `[C]`, float32: how
    much of a round's local steps a client does; default: all. Inside a client's
    function the client axis is gone: `[N]` and scalars.
    """

    index: Array
    count: Array
    share: Array | None = None


class Weighted(NamedTuple):
    """Each client's test: `index` `[C, M]` into the pool, `weight` `[C, M]` float32.

    The weights of a client sum to one and follow its class proportions.
    """

    index: Array
    weight: Array


class Federation(NamedTuple):
    """What a federation is made of; see the module for the letters.

    `train`, `heldout`: disjoint examples of each client; `test`: common examples,
    weighted to the client's own distribution. `proportions` `[C, K]`: classes of the
    client's training examples. `task` `[C]`: the transformation that a client applies.
    """

    pool: Batch
    train: Ragged
    heldout: Ragged
    test: Weighted
    proportions: Array
    task: Array


def take(pool: Batch, index: Array) -> Batch:
    """The pool's examples at an index of any shape."""
    return jax.tree.map(lambda x: x[index], pool)


def pack(groups: Sequence[np.ndarray], *, size: int | None = None) -> Ragged:
    """Index arrays of different lengths as one padded array.

    size: the padded length; default the longest. Raises `ValueError` where a client has
    no example, by the client's number, or more than `size`.
    """
    counts = np.array([len(group) for group in groups], np.int32)
    if counts.min() < 1:
        raise ValueError(f"client {int(counts.argmin())} has no examples")
    size = size or int(counts.max())
    if counts.max() > size:
        raise ValueError(f"client {int(counts.argmax())} has more than {size} examples")
    index = np.zeros((len(groups), size), np.int32)
    for row, group in zip(index, groups, strict=True):
        row[: len(group)] = group
    return Ragged(jnp.asarray(index), jnp.asarray(counts))
