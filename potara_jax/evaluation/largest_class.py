"""Always answering with a client's largest class, which every model should beat.

Dimension letters: `C` clients, `P` examples of the pool, `M` test examples, `K`
classes, `O` options, `A` tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.clients.compiling import jit
from potara_jax.data.federation import Batch, Ragged, Weighted
from potara_jax.data.tokens import Choices
from potara_jax.evaluation.metrics import Scores, equal_shares


class _Client(NamedTuple):
    """A client's training examples, and its test `[M]` with its weights."""

    train: np.ndarray
    test: np.ndarray
    weight: np.ndarray


def largest_class(pool: Batch, train: Ragged, test: Weighted) -> Scores | None:
    """Scores of each client's class frequencies as a predictor, on its test.

    A client predicts the class that its training examples have most often, with the
    probability `(n_k + 1) / (n + K)` for a class that `n_k` of `n` examples have. Where
    examples have options, these are the classes, known by their texts, and the
    probability is among an example's options; an example with one option is right if it
    is the client's most frequent answer.

    Args:
      pool: `P` examples.
      train: every client's training examples.
      test: every client's test.

    Returns:
      The scores `[C]`; None where the pool has neither classes nor options.
    """
    clients = list(_clients(train, test))
    if isinstance(pool.inputs, Choices):
        return _of_options(pool.inputs, clients)
    labels = _classes(pool)
    return None if labels is None else _of_classes(labels, clients)


def _classes(pool: Batch) -> np.ndarray | None:
    """The class of every example `[P]`, from 0, if labels are classes."""
    labels = pool.labels
    if not hasattr(labels, "dtype") or labels.ndim != 1:
        return None
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        return None
    return np.unique(labels, return_inverse=True)[1]


def _clients(train: Ragged, test: Weighted) -> Iterator[_Client]:
    index, counts = np.asarray(train.index), np.asarray(train.count)
    places, weights = map(np.asarray, test)
    for row, count, place, weight in zip(index, counts, places, weights, strict=True):
        yield _Client(row[:count], place, weight)


_equal_shares = jit(jax.vmap(equal_shares))  # of all clients


def _of_classes(labels: np.ndarray, clients: Sequence[_Client]) -> Scores:
    classes = int(labels.max()) + 1
    tests, weights = (np.stack([c[i] for c in clients]) for i in (1, 2))
    equal = np.asarray(_equal_shares(labels[tests], weights))
    scores, balanced = [], []
    for (train, test, weight), share_of in zip(clients, equal, strict=True):
        counts = np.bincount(labels[train], minlength=classes)
        right = labels[test] == counts.argmax()
        share = (counts[labels[test]] + 1) / (len(train) + classes)
        scores.append(_scores(right, share, weight))
        balanced.append(right @ share_of)
    return _stacked(scores)._replace(balanced=jnp.asarray(balanced, jnp.float32))


def _of_options(pool: Choices, clients: Sequence[_Client]) -> Scores | None:
    answers, gold = np.asarray(pool.answers), np.asarray(pool.gold)
    present = np.asarray((answers >= 0).any(-1))
    if not (present.sum(1) > 1).any():
        return None
    rows = answers.reshape(-1, answers.shape[-1])
    known = np.unique(rows, axis=0, return_inverse=True)[1].reshape(present.shape)
    right = known[np.arange(len(gold)), gold]
    scores = []
    for train, test, weight in clients:
        counts = np.bincount(right[train], minlength=int(known.max()) + 1)
        options = np.where(present[test], counts[known[test]], -1)
        chosen = known[test, options.argmax(1)]
        single = present[test].sum(1) == 1
        chosen = np.where(single, counts.argmax(), chosen)
        total = np.where(single, len(train) + len(counts), (options + 1).sum(1))
        share = (counts[right[test]] + 1) / total
        scores.append(_scores(chosen == right[test], share, weight))
    return _stacked(scores)


def _scores(
    right: np.ndarray, share: np.ndarray, weight: np.ndarray
) -> tuple[float, float]:
    """The weighted mean of what is right, and of minus the log probability."""
    return float((weight * right).sum()), float(-(weight * np.log(share)).sum())


def _stacked(scores: list[tuple[float, float]]) -> Scores:
    accuracy, loss = np.transpose(scores)
    return Scores(jnp.asarray(accuracy, jnp.float32), jnp.asarray(loss, jnp.float32))
