"""What every step of a cell works with, and the samples that it measures on."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter
from potara_jax.data.federation import Batch, Federation, Ragged, take
from potara_jax.evaluation.metrics import Scores
from potara_jax.experiment.phases import Outcome
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.programs import Programs
from potara_jax.experiment.settings import Settings
from potara_jax.federated.conditions import present
from potara_jax.federated.interface import Shared
from potara_jax.merging import Samples
from potara_jax.runs.store import Cell


class Context(NamedTuple):
    """A cell's settings, programs, problem and clients; `key` is the cell's."""

    settings: Settings
    programs: Programs
    problem: Problem
    federation: Federation
    cell: Cell
    key: jax.Array

    @property
    def shared(self) -> Shared:
        """The base and the pool."""
        return Shared(self.problem.base, self.federation.pool)

    @property
    def there(self) -> int:
        """How many clients are there from the beginning: the first ones."""
        return present(self.programs.federated.conditions, self.settings.clients)

    def fold(self, number: int) -> jax.Array:
        """A key for one purpose."""
        return jax.random.fold_in(self.key, number)


class Parents(NamedTuple):
    """What the three phases gave."""

    federated: Outcome
    local: Outcome
    fine_tuned: Outcome


def chosen(at: Context, *, other: bool = False) -> Samples:
    """The samples that curvature is measured on by the settings, or the other ones."""
    unseen = (at.settings.curvature_on == "heldout") != other
    return heldout(at) if unseen else training(at)


def heldout(at: Context) -> Samples:
    """Every client's held-out examples."""
    return _gathered(at.federation.pool, at.federation.heldout)


def training(at: Context) -> Samples:
    """The first training examples of every client, whose order is random."""
    return _first(at.federation.pool, at.federation.train, at.settings.samples)


@partial(jax.jit, static_argnums=2)
def _first(pool: Batch, train: Ragged, number: int) -> Samples:
    index, count, _ = train
    index = jnp.pad(index[:, :number], ((0, 0), (0, max(0, number - index.shape[1]))))
    return _gathered(pool, Ragged(index, jnp.minimum(count, number)))


@jax.jit
def _gathered(pool: Batch, ragged: Ragged) -> Samples:
    return Samples(take(pool, ragged.index), ragged.count)


def score(at: Context, adapters: Adapter) -> Scores:
    """Every client's model on its own test distribution."""
    return at.programs.evaluate(at.shared, adapters, at.federation.test)


def score_last(at: Context, outcome: Outcome) -> Scores:
    """The scores of a phase's last models."""
    phase, last = at.programs.federated, len(outcome.history)
    if last in outcome.marks:
        return outcome.marks[last].scores
    return phase.evaluate(outcome.shared, outcome.models, at.federation.test)


def score_common(at: Context, adapters: Adapter) -> Scores:
    """The scores of a model that all clients have: the first client's is looked at."""
    first = jax.tree.map(lambda x: x[0], adapters)
    return at.programs.evaluate_common(at.shared, first, at.federation.test)
