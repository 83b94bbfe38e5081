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
from potara_jax.keys import subkey

Array = jax.Array


class Conditions(NamedTuple):
    """Who takes part in a round, and who finishes it; by default everybody.

    Attributes:
      cohort: the clients of a round, as a share of them in (0, 1] or as their number.
      by_examples: draw clients in proportion to their numbers of examples, so that the
        weighted sum of a cohort is that of all clients in expectation, see `inclusion`;
        else draw them uniformly and weight them by their numbers of examples, as FedAvg
        does.
      dropout: the probability that a client is lost after training: nothing that it
        sends arrives, and its state stays as it was.
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

    Args:
      conditions: of the rounds.
      clients: the number of all clients.

    Raises:
      ValueError: all clients are newcomers.
    """
    left = clients - math.ceil(conditions.newcomers * clients - 1e-9)
    if left < 1:
        raise ValueError(f"all of {clients} clients are newcomers: nobody trains")
    return left


def size(conditions: Conditions, clients: int) -> Size:
    """The number of clients that may be drawn, and of those in a round's cohort.

    Args:
      conditions: of the rounds.
      clients: the number of all clients.

    Raises:
      ValueError: all clients are newcomers.
    """
    num_present, cohort = present(conditions, clients), conditions.cohort
    if isinstance(cohort, float):
        cohort = max(1, math.ceil(cohort * num_present - 1e-9))  # .07 of 100 are 7
    return Size(num_present, min(cohort, num_present))


# --- Cohorts -------------------------------------------------------------------------


class Cohort(NamedTuple):
    """The clients of a round, sorted, and their weights in the server's sum: `[c]`.

    Weights are relative: they are scaled to sum to one over the clients that arrive.
    """

    client: Array
    weight: Array


def draw_cohort(
    conditions: Conditions, counts: Array, key: Array, number: Array | int
) -> Cohort:
    """The cohort of a round.

    Args:
      conditions: of the rounds.
      counts: all clients' examples, `[C]`.
      key: of all rounds; not consumed.
      number: of the round.
    """
    num_present, cohort = size(conditions, len(counts))
    counts = counts[:num_present].astype(jnp.float32)
    key = jax.random.fold_in(subkey(key, "cohorts"), number)
    if cohort == num_present:
        return Cohort(jnp.arange(num_present), counts)
    if conditions.by_examples:
        chance = inclusion(counts, cohort)
        client = _systematic(chance, cohort, key)
        return Cohort(client, counts[client] / chance[client])
    drawn = jax.random.choice(key, num_present, (cohort,), replace=False)
    client = jnp.sort(drawn)
    return Cohort(client, counts[client])


def inclusion(counts: Array, cohort: int) -> Array:
    """The probability `[C]` that each client is in a cohort, which sum to its size.

    In proportion to the clients' examples, but at most one: a client that would exceed
    it is in every cohort, and the others share the places that are left. Weights of
    `counts / inclusion` make the cohort's weighted sum unbiased (Horvitz and Thompson
    1952); they sum to the number of all examples whoever is drawn.

    Args:
      counts: all clients' examples, `[C]`, float32.
      cohort: fewer than all clients.
    """
    order = jnp.argsort(-counts)
    falling = counts[order]
    rest = jnp.cumsum(falling[::-1])[::-1]  # of each client and the smaller ones
    places = cohort - jnp.arange(len(counts))
    always = jnp.cumprod(places * falling >= rest) == 1
    first = always.sum()
    share = (cohort - first) * falling / rest[first]
    chance = jnp.where(always, 1.0, jnp.minimum(share, 1.0))
    return jnp.zeros_like(counts).at[order].set(chance)


def _systematic(chance: Array, cohort: int, key: Array) -> Array:
    """`cohort` distinct clients, each with its chance; chances sum to `cohort`.

    The chances are laid end to end in random order, and points at distance one, from a
    uniform start, hit the clients (Madow 1949).
    """
    order_key, start_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(chance))
    ends = jnp.cumsum(chance[order]).at[-1].set(cohort)
    before = jnp.maximum(jnp.ceil(ends - jax.random.uniform(start_key)), 0)
    hits = jnp.diff(before, prepend=0)  # one or none, and two only by rounding
    _, place = jax.lax.top_k(hits, cohort)
    return jnp.sort(order[place])


# --- Who finishes --------------------------------------------------------------------


def slowed(conditions: Conditions, examples: Ragged, key: Array) -> Ragged:
    """One client's examples, with the share of its steps that it finishes."""
    if not conditions.stragglers:
        return examples
    late, share = jax.random.split(subkey(key, "stragglers"))
    late = jax.random.bernoulli(late, conditions.stragglers)
    share = jnp.where(late, jax.random.uniform(share), 1.0)
    full = 1.0 if examples.share is None else examples.share
    return examples._replace(share=share * full)


def lost(conditions: Conditions, key: Array) -> Array:
    """Whether one client is lost after training."""
    return jax.random.bernoulli(subkey(key, "dropout"), conditions.dropout)
