"""The conditions of a federation: who takes part in a round, and who finishes it.

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
    """Who takes part in a round, and who finishes it; by default everybody.

    cohort: the clients of a round, as a share of them in (0, 1] or as their number.
    by_examples: draw clients in proportion to their numbers of examples, and weight
      them equally; else draw them uniformly, weighted by their numbers of examples.
    dropout: the probability that a client is lost after training: nothing that it sends
      arrives, and its state stays as it was.
    stragglers: the probability that a client finishes only a part of its steps, of
      uniform length.
    newcomers: the share of clients, the last ones, that no round's cohort contains.
    """

    cohort: float | int = 1.0
    by_examples: bool = False
    dropout: float = 0.0
    stragglers: float = 0.0
    newcomers: float = 0.0


EVERYBODY = Conditions()


def check(conditions: Conditions) -> None:
    """Check the ranges of all numbers.

    Raises:
        ValueError: a number is out of its range.
    """
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
    """The number of clients that a cohort may contain: the first ones, no newcomers.

    Raises:
        ValueError: all clients are newcomers.
    """
    left = clients - math.ceil(conditions.newcomers * clients - 1e-9)
    if left < 1:
        raise ValueError(f"all of {clients} clients are newcomers: nobody trains")
    return left


def size(conditions: Conditions, clients: int) -> Size:
    """The number of clients that may be drawn, and of those in a round's cohort.

    Raises:
        ValueError: all clients are newcomers.
    """
    num_present, cohort = present(conditions, clients), conditions.cohort
    if isinstance(cohort, float):
        cohort = max(1, math.ceil(cohort * num_present - 1e-9))  # .07 of 100 are 7
    return Size(num_present, min(cohort, num_present))


def draw_cohort(
    conditions: Conditions, counts: Array, key: Array, number: Array | int
) -> Array:
    """The sorted clients `[c]` of a round; `counts` `[C]`: all clients' examples."""
    num_present, cohort = size(conditions, len(counts))
    if cohort == num_present:
        return jnp.arange(num_present)
    key = jax.random.fold_in(jax.random.fold_in(key, num_present), number)
    present_counts = counts[:num_present]
    chance = present_counts / present_counts.sum() if conditions.by_examples else None
    drawn = jax.random.choice(key, num_present, (cohort,), replace=False, p=chance)
    return jnp.sort(drawn)


def slowed(conditions: Conditions, examples: Ragged, key: Array) -> Ragged:
    """One client's examples, with the share of its steps that it finishes."""
    if not conditions.stragglers:
        return examples
    late, share = jax.random.split(jax.random.fold_in(key, 1))
    late = jax.random.bernoulli(late, conditions.stragglers)
    share = jnp.where(late, jax.random.uniform(share), 1.0)
    full = 1.0 if examples.share is None else examples.share
    return examples._replace(share=share * full)


def lost(conditions: Conditions, key: Array) -> Array:
    """Whether one client is lost after training."""
    return jax.random.bernoulli(jax.random.fold_in(key, 2), conditions.dropout)
