"""A federation as arrays: a pool of examples, and which client holds which.

Dimension letters: `P` pool, `C` clients, `N` examples of the largest client, `M` test
examples, `K` classes.

Clients hold indices into one resident pool, padded to the largest client. Each client's
number of real examples is stored beside them, and whoever draws from them draws below
that number, so padding changes no result, not even a bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax import keys
from potara_jax.data import partition
from potara_jax.data.arrays import Examples, pooled
from potara_jax.data.stored import is_stored

Array = jax.Array
Splits = tuple[Examples, Examples, Examples]  # for training, held out, for testing
_MAX_CLASSES = 1000  # more are no classes, but numbers such as prices


class Batch(NamedTuple):
    """Examples; either field may be a pytree of arrays with the leading axis.

    Attributes:
      inputs: `[B, ...]`.
      labels: `[B]`, int32, where they are classes.
      key: what a training step draws with, such as a model's dropout; None where a
        model is measured.
    """

    inputs: Any
    labels: Any
    key: Array | None = None


class Draws(NamedTuple):
    """What training steps draw: the examples of a batch, and a key for the rest.

    Attributes:
      index: places in the pool, `[S, B]`, int32.
      key: `[S]`.
    """

    index: Array
    key: Array


class Ragged(NamedTuple):
    """Each client's examples. Inside a client's function the client axis is gone.

    Attributes:
      index: places in the pool, `[C, N]`, int32; only the first `count` of a client are
        real.
      count: the number of each client's examples, `[C]`, int32.
      share: the part of a round's local steps that a client takes, `[C]`, float32;
        default: all.
    """

    index: Array
    count: Array
    share: Array | None = None


class Weighted(NamedTuple):
    """Each client's test. Its weights follow the client's distribution.

    Attributes:
      index: places in the pool, `[C, M]`, int32.
      weight: `[C, M]`, float32, which sum to one; padding weighs nothing.
    """

    index: Array
    weight: Array


class Federation(NamedTuple):
    """A pool of examples and each client's part of it; see the module for the letters.

    Attributes:
      pool: all examples.
      train: examples of each client to train on.
      heldout: examples of each client to measure on, disjoint from those.
      test: examples weighted to the client's distribution.
      proportions: classes of the client's training examples, `[C, K]`.
      task: the transformation that a client applies, `[C]`.
    """

    pool: Batch
    train: Ragged
    heldout: Ragged
    test: Weighted
    proportions: Array
    task: Array

    @classmethod
    def of(
        cls,
        clients: Sequence[Examples],
        *,
        heldout: int | float,
        test: int | float,
        key: Array,
    ) -> Federation:
        """A federation of arrays, one pair `(inputs, labels)` per client.

        Every client's examples are shuffled and split at random, by the key and the
        client's number alone. Its test examples have equal weights.

        Args:
          clients: each client's inputs and labels: NumPy or JAX arrays, or pytrees of
            them, with a leading axis of examples, which may differ in length.
          heldout: each client's held-out examples, which are not trained on: their
            number if an integer, their share if a fraction below 1. At least one.
          test: each client's examples for testing, likewise.
          key: the split's key, consumed.

        Returns:
          The federation. Where labels are integers `[N]` from 0 to at most 999,
          `proportions` are those of the classes; otherwise one column of ones. Every
          client has its own task.

        Raises:
          ValueError: a client's arrays do not fit the first client's, have a number
            that is not finite, or leave no example to train on; or the key is none.

        Examples:
          >>> clients = [(np.zeros((n, 2)), np.arange(n) % 3) for n in (10, 20)]
          >>> key = jax.random.key(0)
          >>> federation = Federation.of(clients, heldout=2, test=0.2, key=key)
          >>> federation.train.count.tolist(), federation.heldout.count.tolist()
          ([6, 14], [2, 2])
        """
        keys.check(key)
        _check_sequence(clients)
        _check_amount("heldout", heldout)
        _check_amount("test", test)
        arrays, groups = pooled(clients, names=_names(len(clients)))
        parts = [
            _split(_generator(key, client), group, heldout, test, client)
            for client, group in enumerate(groups)
        ]
        return cls._assembled(Batch(*arrays), parts)

    def examples(self) -> list[np.ndarray]:
        """Every client's indices into the pool, of all its splits."""
        train, held = _groups(self.train), _groups(self.heldout)
        index, weight = map(np.asarray, self.test)
        tests = [row[real] for row, real in zip(index, weight > 0, strict=True)]
        return [np.concatenate(parts) for parts in zip(train, held, tests, strict=True)]

    @classmethod
    def of_splits(cls, clients: Sequence[Splits]) -> Federation:
        """A federation of arrays that have been split already; see `of`.

        Args:
          clients: three pairs `(inputs, labels)` per client: its examples for training,
            those held out, and those for testing.

        Raises:
          ValueError: as `of` does.
        """
        kinds = "training", "held-out", "test"
        _check_sequence(clients)
        for client, splits in enumerate(clients):
            if not isinstance(splits, tuple | list) or len(splits) != len(kinds):
                raise ValueError(
                    f"client {client} must have three pairs of arrays: its examples "
                    "for training, those held out, and those for testing"
                )
        names = [f"{name}'s {kind}" for name in _names(len(clients)) for kind in kinds]
        flat = [examples for splits in clients for examples in splits]
        arrays, groups = pooled(flat, names=names)
        parts = [groups[start : start + 3] for start in range(0, len(groups), 3)]
        return cls._assembled(Batch(*arrays), parts)

    @classmethod
    def _assembled(
        cls, pool: Batch, parts: Sequence[Sequence[np.ndarray]]
    ) -> Federation:
        train, heldout, test = zip(*parts, strict=True)
        return cls(
            pool=pool,
            train=pack(train),
            heldout=pack(heldout),
            test=evenly_weighted(pack(test)),
            proportions=_proportions(pool.labels, train),
            task=jnp.arange(len(parts)),
        )


# --- Splits --------------------------------------------------------------------------


def _check_sequence(clients: Any) -> None:
    if not isinstance(clients, tuple | list):
        given = type(clients).__name__
        raise ValueError(f"clients is a {given}: it must be a list, one item a client")


def _names(clients: int) -> list[str]:
    return [f"client {client}" for client in range(clients)]


def _check_amount(name: str, amount: int | float) -> None:
    if isinstance(amount, int | np.integer) and not isinstance(amount, bool):
        good = amount >= 1
    else:
        good = isinstance(amount, float | np.floating) and 0 < amount < 1
    if not good:
        raise ValueError(
            f"{name} is {amount!r}: it must be a number of examples, 1 or more, or a "
            "share between 0 and 1"
        )


def _generator(key: Array, client: int) -> np.random.Generator:
    words = np.ravel(jax.random.key_data(key)).tolist()
    return np.random.default_rng([*words, client])


def _split(
    rng: np.random.Generator,
    group: np.ndarray,
    heldout: int | float,
    test: int | float,
    client: int,
) -> list[np.ndarray]:
    """A client's indices for training, held out, and for testing."""
    held, tested = (_number(amount, len(group)) for amount in (heldout, test))
    train = len(group) - held - tested
    if train < 1:
        raise ValueError(
            f"client {client} has {len(group)} examples: with {held} held out and "
            f"{tested} for testing, none is left to train on; hold out fewer, or leave "
            "the client out"
        )
    return np.split(rng.permutation(group), [train, train + held])


def _number(amount: int | float, examples: int) -> int:
    share = not isinstance(amount, int | np.integer)
    return max(1, round(amount * examples)) if share else amount


def evenly_weighted(examples: Ragged) -> Weighted:
    """Every client's examples as a test in which all of them weigh the same."""
    real = jnp.arange(examples.index.shape[1]) < examples.count[:, None]
    weight = real / examples.count[:, None]
    return Weighted(examples.index, weight.astype(jnp.float32))


def _proportions(labels: Any, groups: Sequence[np.ndarray]) -> Array:
    """Classes of groups of examples `[C, K]`; one column without classes."""
    if not _are_classes(labels):
        return jnp.ones((len(groups), 1), jnp.float32)
    values = np.asarray(labels)
    shares = partition.proportions(values, list(groups), int(values.max()) + 1)
    return jnp.asarray(shares, jnp.float32)


def _are_classes(labels: Any) -> bool:
    integers = isinstance(labels, Array) and jnp.issubdtype(labels.dtype, jnp.integer)
    if not integers or labels.ndim != 1:
        return False
    return bool(labels.min() >= 0) and bool(labels.max() < _MAX_CLASSES)


# --- Indices into a pool -------------------------------------------------------------


def take(pool: Batch, index: Array | Draws) -> Batch:
    """The pool's examples at an index of any shape, or the batch that a step draws."""
    if isinstance(index, Draws):
        return take(pool, index.index)._replace(key=index.key)
    return jax.tree.map(lambda x: x[index], pool, is_leaf=is_stored)


def _groups(examples: Ragged) -> list[np.ndarray]:
    """Each client's real indices into the pool."""
    rows = zip(np.asarray(examples.index), np.asarray(examples.count), strict=True)
    return [index[:count] for index, count in rows]


def pack(groups: Sequence[np.ndarray], *, size: int | None = None) -> Ragged:
    """Index arrays of different lengths as one padded array.

    Args:
      groups: each client's indices into the pool.
      size: the padded length; default: the longest.

    Raises:
      ValueError: naming a client without examples, or with more than `size`.
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
