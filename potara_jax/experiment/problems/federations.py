"""One federation for each cell, all of one shape."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.data import dealing
from potara_jax.data.federation import Batch, Federation, Weighted
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Federations
from potara_jax.experiment.settings import Cells


class MakeFederation(Protocol):
    """Makes a cell's federation, with clients padded to `size`, or to the largest."""

    def __call__(
        self, heterogeneity: str, seed: int, *, size: int | None
    ) -> Federation: ...


def for_cells(cells: Cells, make: MakeFederation) -> Federations:
    """A federation for each heterogeneity and seed, all padded to the largest.

    Args:
      cells: the cells.
      make: makes the federation of one.

    Returns:
      The federations by `(heterogeneity, seed)`.
    """
    size = max(make(*key, size=None).train.index.shape[1] for key in cells.keys)
    federations = {key: make(*key, size=size) for key in cells.keys}
    tests = max(_columns(federation.test) for federation in federations.values())
    return {
        key: federation._replace(test=_fit(federation.test, tests))
        for key, federation in federations.items()
    }


def _columns(test: Weighted) -> int:
    """The columns of a test up to the last one that counts for any client."""
    return int(np.flatnonzero((test.weight > 0).any(0))[-1]) + 1


def _fit(test: Weighted, size: int) -> Weighted:
    """A test with columns cut, or padded with zeros, to a number."""

    def fit(x: jax.Array) -> jax.Array:
        kept = x[:, :size]
        return jnp.pad(kept, ((0, 0), (0, size - kept.shape[1])))

    return Weighted(*map(fit, test))


def dealt(
    experiment: Experiment,
    pool: Batch,
    strata: np.ndarray,
    *,
    test: int | None = None,
    testing: np.ndarray | None = None,
    same: np.ndarray | None = None,
    kinds: int = 1,
) -> Federations:
    """Deal a pool's examples to clients, as federations.

    Args:
      experiment: its cells, and the samples that weights are measured on.
      pool: `P` examples.
      strata: `[P]`, the class or task of every example.
      test: the maximum of test examples per client. Default: all, weighted.
      testing: `[P]`, true for examples that only tests may use.
      same: `[P]`, equal for copies, which belong to one part of the split.
      kinds: in how many ways clients can see the examples; see `dealing.dealt`.

    Returns:
      The federations by cell.
    """

    def make(heterogeneity: str, seed: int, *, size: int | None) -> Federation:
        return dealing.dealt(
            pool,
            strata,
            heterogeneity,
            seed,
            clients=experiment.cells.clients,
            heldout=experiment.merging.samples,
            test=test,
            testing=testing,
            same=same,
            apart=experiment.cells.apart_from,
            kinds=kinds,
            size=size,
        )

    return for_cells(experiment.cells, make)


def natural(
    experiment: Experiment,
    pool: Batch,
    owner: np.ndarray,
    strata: np.ndarray,
    *,
    test: int,
    same: np.ndarray | None = None,
) -> Federations:
    """Federations of clients with their own examples; a seed draws their splits.

    Args:
      experiment: its cells, and the samples that weights are measured on.
      pool: `P` examples.
      owner: `[P]`, the client of every example.
      strata: `[P]`, the class or task of every example.
      test: test examples per client, at most.
      same: `[P]`, equal for copies: nobody trains on what anybody is tested on.

    Returns:
      The federations by cell.
    """

    def make(heterogeneity: str, seed: int, *, size: int | None) -> Federation:
        return dealing.natural(
            pool,
            owner,
            strata,
            seed,
            heldout=experiment.merging.samples,
            test=test,
            same=same,
            apart=experiment.cells.apart_from,
            size=size,
        )

    return for_cells(experiment.cells, make)
