"""Federations of any examples that belong to strata: classes, or tasks.

Everything here is NumPy on the host, done once before training.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from potara_jax.data import partition
from potara_jax.data.federation import Batch, Federation, Weighted, pack

TASKS = "tasks"


def deal(
    rng: np.random.Generator,
    strata: np.ndarray,
    heterogeneity: str,
    *,
    clients: int,
    minimum: int = 8,
) -> list[np.ndarray]:
    """The places of each client's examples, of `strata` `[N]`.

    heterogeneity: a Dirichlet concentration over the strata as text (`0.1`), `shards2`
    (any number: every client holds so many strata, in equal parts), or `tasks`: one
    stratum a client, in turn. All examples are dealt. Raises `ValueError` where clients
    cannot have `minimum` examples each.
    """
    if heterogeneity == TASKS or heterogeneity.startswith(SHARDS):
        number = 1 if heterogeneity == TASKS else int(heterogeneity[len(SHARDS) :])
        return _shards(rng, strata, clients, number, minimum)
    concentration = float(heterogeneity)
    how = {"clients": clients, "concentration": concentration, "minimum": minimum}
    return partition.dirichlet(rng, strata, **how)


SHARDS = "shards"


def _shards(rng, strata, clients: int, number: int, minimum: int) -> list[np.ndarray]:
    """Client `c` holds the strata `number * c, ...` in turn, shared evenly."""
    known = np.unique(strata)
    held = [
        known[(number * c + np.arange(number)) % len(known)] for c in range(clients)
    ]
    parts: list[list[np.ndarray]] = [[] for _ in held]
    for stratum in known:
        holders = [c for c, own in enumerate(held) if stratum in own]
        order = rng.permutation(np.flatnonzero(strata == stratum))
        for c, part in zip(
            holders, np.array_split(order, max(1, len(holders))), strict=False
        ):
            parts[c].append(part)
    dealt = [rng.permutation(np.concatenate(own)) for own in parts]
    fewest = min(map(len, dealt))
    if fewest < minimum:
        raise ValueError(
            f"a client would have {fewest} training examples, fewer than {minimum}; "
            "take fewer clients"
        )
    return dealt


def federate(
    rng: np.random.Generator,
    pool: Batch,
    strata: np.ndarray,
    parts: dict[str, np.ndarray],
    groups: Sequence[np.ndarray],
    *,
    heldout: int,
    test: int | None = None,
    size: int | None = None,
) -> Federation:
    """Clients that hold `groups` of the pool's examples, each with its own strata.

    strata: `[P]`, of the pool's examples. parts: the places of the common `heldout` and
      `test` examples, of which a client has those of its strata, in its proportions.
    heldout: how many of them a client measures on. test: how many of them it is tested
      on, drawn in its proportions; default: all of its strata, weighted by them.
    size: as in `federation.pack`.
    """
    shares = partition.proportions(strata, groups, int(strata.max()) + 1)
    draw = lambda own, number: [
        own[partition.draw_like(rng, strata[own], share, number)] for share in shares
    ]
    drawn = draw(parts["heldout"], heldout)
    tested = draw(parts["test"], test) if test else None
    return Federation(
        pool=pool,
        train=pack(groups, size=size),
        heldout=pack(drawn, size=heldout),
        test=_even(tested, test) if test else _weighted(strata, parts["test"], shares),
        proportions=jnp.asarray(shares, jnp.float32),
        task=jnp.asarray(shares.argmax(1), jnp.int32),
    )


def owned(
    rng: np.random.Generator,
    pool: Batch,
    strata: np.ndarray,
    owner: np.ndarray,
    *,
    shares: dict[str, float],
    heldout: int,
    test: int,
    size: int | None = None,
) -> Federation:
    """Clients that hold examples of their own: those that `owner` `[P]` gives them.

    Every client's are split in given shares of `train`, `heldout` and `test`, of every
    stratum alike, or by chance where a part would then have none; of the last two, so
    many are used, at most.
    """
    clients = int(owner.max()) + 1
    own = [np.flatnonzero(owner == client) for client in range(clients)]
    parts = [_split_own(rng, strata[places], shares) for places in own]
    of = lambda name: [
        places[rng.permutation(part[name])]
        for places, part in zip(own, parts, strict=True)
    ]
    train, drawn, tested = of("train"), of("heldout"), of("test")
    held = partition.proportions(strata, train, int(strata.max()) + 1)
    return Federation(
        pool=pool,
        train=pack(train, size=size),
        heldout=pack([places[:heldout] for places in drawn], size=heldout),
        test=_even([places[:test] for places in tested], test),
        proportions=jnp.asarray(held, jnp.float32),
        task=jnp.arange(clients),
    )


def _split_own(rng, strata, shares) -> dict[str, np.ndarray]:
    parts = partition.split(rng, strata, shares)
    if all(map(len, parts.values())):
        return parts
    return partition.split(rng, np.zeros_like(strata), shares)


def _weighted(strata, test, shares) -> Weighted:
    """Every client's test examples, those that count, padded to the most."""
    weights = [partition.example_weights(strata[test], share) for share in shares]
    counted = [np.flatnonzero(weight) for weight in weights]
    most = max(map(len, counted))
    index = np.full((len(shares), most), test[0], np.int32)
    weight = np.zeros((len(shares), most), np.float32)
    for row, (places, values) in enumerate(zip(counted, weights, strict=True)):
        index[row, : len(places)] = test[places]
        weight[row, : len(places)] = values[places]
    return Weighted(jnp.asarray(index), jnp.asarray(weight))


def _even(groups: Sequence[np.ndarray], size: int) -> Weighted:
    """Test examples of the same weight, padded to one length."""
    index, count, _ = pack(groups, size=size)
    real = jnp.arange(size) < count[:, None]
    return Weighted(index, real / count[:, None].astype(jnp.float32))
