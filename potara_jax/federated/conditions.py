"""The conditions of a federation: who takes part in a round, and how far they come.

All of it is drawn from the key, the client and the round alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.data.federation import Ragged
from potara_jax.federated.interface import Size

Array = jax.Array


class Conditions(NamedTuple):
    """Who takes part, and how far they come; by default everybody, to the end.

    cohort: a round's clients: a share of them in (0, 1], or their number.
    by_examples: clients are drawn in proportion to their numbers of examples, and then
      weigh alike; else drawn uniformly and weighed by their numbers of examples.
    dropout: the probability that a client is lost after having trained: nothing of its
      round arrives, and its state is as before.
    stragglers: the probability that a client finishes a part of its steps alone, of
      uniform length.
    newcomers: the share of clients, the last ones, that are in no round's cohort.
    """

    cohort: float | int = 1.0
    by_examples: bool = False
    dropout: float = 0.0
    stragglers: float = 0.0
    newcomers: float = 0.0


EVERYBODY = Conditions()


def check(conditions: Conditions) -> None:
    """Raise `ValueError` where a number is not in its range."""
    cohort = conditions.cohort
    if isinstance(cohort, float) and not 0 < cohort <= 1:
        raise ValueError(f"the fraction of a cohort is {cohort}: it must be in (0, 1]")
    if isinstance(cohort, int) and cohort < 1:
        raise ValueError(f"the size of a cohort is {cohort}: it must be 1 or more")
    for name in ("dropout", "stragglers", "newcomers"):
        value = getattr(conditions, name)
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}: it must be in [0, 1)")


def present(conditions: Conditions, clients: int) -> int:
    """How many clients can be in a cohort: all but the newcomers, which are the last.

    Raises `ValueError` where none is left.
    """
    left = clients - math.ceil(conditions.newcomers * clients - 1e-9)
    if left < 1:
        raise ValueError(f"all of {clients} clients are newcomers: nobody trains")
    return left


def size(conditions: Conditions, clients: int) -> Size:
    """The number of clients that may be drawn, and of a round's cohort."""
    there, cohort = present(conditions, clients), conditions.cohort
    if isinstance(cohort, float):
        cohort = max(1, math.ceil(cohort * there - 1e-9))  # .07 of 100 are 7
    return Size(there, min(cohort, there))


def draw_cohort(
    conditions: Conditions, counts: Array, key: Array, number: Array | int
) -> Array:
    """The clients `[c]` of a round, sorted, of clients with `counts` `[C]` examples."""
    there, cohort = size(conditions, len(counts))
    if cohort == there:
        return jnp.arange(there)
    key = jax.random.fold_in(jax.random.fold_in(key, there), number)
    chance = counts[:there] / counts[:there].sum() if conditions.by_examples else None
    drawn = jax.random.choice(key, there, (cohort,), replace=False, p=chance)
    return jnp.sort(drawn)


def slowed(conditions: Conditions, examples: Ragged, key: Array) -> Ragged:
    """One client's examples, with the share of its steps that it finishes."""
    if not conditions.stragglers:
        return examples
    late, share = jax.random.split(jax.random.fold_in(key, 1))
    late = jax.random.bernoulli(late, conditions.stragglers)
    share = jnp.where(late, jax.random.uniform(share), 1.0)
    own = 1.0 if examples.share is None else examples.share
    return examples._replace(share=share * own)


def lost(conditions: Conditions, key: Array) -> Array:
    """Whether one client is lost after having trained."""
    return jax.random.bernoulli(jax.random.fold_in(key, 2), conditions.dropout)
