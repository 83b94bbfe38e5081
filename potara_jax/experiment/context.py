"""What the steps of a cell share, and the samples that they measure on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from potara_jax.clients.compiling import jit
from potara_jax.data.federation import Batch, Federation, Ragged, take
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.federating import conditions
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.programs import Programs
from potara_jax.experiment.side_by_side import side_by_side
from potara_jax.federated.conditions import present
from potara_jax.federated.interface import Shared
from potara_jax.keys import Purpose, subkey
from potara_jax.merging import Samples
from potara_jax.runs.progress import Progress
from potara_jax.runs.store import Cell, Store

T = TypeVar("T")
Item = TypeVar("Item")
_LONG = 0.5  # seconds: so many are not repeated


class Context(NamedTuple):
    """One cell of a run; `key` is the cell's, `[]`."""

    experiment: Experiment
    problem: Problem
    programs: Programs
    cell: Cell
    key: jax.Array
    store: Store
    progress: Progress

    @property
    def federation(self) -> Federation:
        """The cell's clients."""
        return self.problem.federations[self.cell]

    @property
    def clients(self) -> int:
        """The number of clients."""
        return len(self.federation.train.count)

    @property
    def present(self) -> int:
        """How many of them take part from the beginning; they come first."""
        return present(conditions(self.experiment), self.clients)

    @property
    def shared(self) -> Shared:
        """The base and the pool."""
        return Shared(self.problem.base, self.federation.pool)

    def once_measured(self, name: str, measure: Callable[[], T]) -> T:
        """The result of `measure()`, a tree of arrays; one that took long is kept.

        If the run is interrupted in the cell, it goes on from what is kept.

        Args:
          name: of the file that the result is kept in.
          measure: computes it.
        """
        kept = self.store.kept(self.cell, name)
        if kept is not None:
            return kept
        began = time.monotonic()
        value = jax.block_until_ready(measure())
        if time.monotonic() - began > _LONG:
            self.store.keep(self.cell, name, value)
        return value

    def each(
        self, name: str, function: Callable[[Item], T], items: Sequence[Item]
    ) -> list[T]:
        """`[function(x) for x in items]` with progress, see `side_by_side`."""
        show = lambda given: self.progress.each(f"{self.cell.name} {name}", given)
        return side_by_side(function, items, show)

    def key_for(self, purpose: Purpose) -> jax.Array:
        """The cell's key for a purpose."""
        return subkey(self.key, purpose)


def heldout_samples(at: Context) -> Samples:
    """Every client's held-out examples."""
    return heldout_of(at.federation)


def heldout_of(federation: Federation) -> Samples:
    """The held-out examples of every client of a federation."""
    return _gathered(federation.pool, federation.heldout)


def training_samples(at: Context) -> Samples:
    """The first training examples of every client, whose order is random."""
    train, number = at.federation.train, at.experiment.merging.samples
    index = train.index[:, :number]
    first = Ragged(index, jnp.minimum(train.count, number))
    return _gathered(at.federation.pool, first)


@jit
def _gathered(pool: Batch, ragged: Ragged) -> Samples:
    return Samples(take(pool, ragged.index), ragged.count)
