"""Who holds which examples: splits into parts, and federations of any examples.

Every example belongs to a stratum: a class, or a task. All of this is NumPy on the
host, once before training. Dimension letters: `P` examples of the pool, `C` clients,
`K` strata, `M` test examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from potara_jax.data import partition
from potara_jax.data.federation import (
    Batch,
    Federation,
    Ragged,
    Weighted,
    evenly_weighted,
    pack,
)

TASKS = "tasks"
SHARDS = "shards"
_EVENLY = "100"  # a concentration at which clients have all strata alike
SHARES: Mapping[str, float] = {"train": 0.6, "heldout": 0.2, "test": 0.2}
_WITH_TESTS: Mapping[str, float] = {"train": 0.9, "heldout": 0.1}
_APART: Mapping[str, float] = {"train": 0.75, "heldout": 0.25}


class Parts(NamedTuple):
    """Disjoint indices of the examples to train on, to measure on and to test on."""

    train: np.ndarray
    heldout: np.ndarray
    test: np.ndarray


def split(
    rng: np.random.Generator,
    strata: np.ndarray,
    *,
    testing: np.ndarray | None = None,
    apart: Sequence[int] = (),
    same: np.ndarray | None = None,
) -> Parts:
    """Split examples into parts that all have the same proportions of strata.

    Args:
      rng: draws the split.
      strata: `[P]`.
      testing: `[P]`, true for the examples that only tests may use. Default: a fifth of
        every stratum.
      apart: seeds whose tests are the tests of this split too, so that nothing of them
        is trained or measured on. Where `testing` is given, this is so for any seed.
      same: `[P]`, equal for examples that belong to one part, as copies do.

    Returns:
      The parts, each sorted.
    """
    if same is not None:
        return _split_groups(rng, strata, same, testing=testing, apart=apart)
    if testing is not None:
        return _split_others(rng, strata, testing, _WITH_TESTS)
    if apart:
        tests = [split(generator(seed), strata).test for seed in apart]
        return _split_others(rng, strata, _mask(len(strata), tests), _APART)
    return Parts(**partition.split(rng, strata, SHARES))


def _split_groups(
    rng: np.random.Generator,
    strata: np.ndarray,
    same: np.ndarray,
    *,
    testing: np.ndarray | None,
    apart: Sequence[int],
) -> Parts:
    """Split groups of examples, each by the stratum of its first example."""
    _, first, group = np.unique(same, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as the groups begin
    tested = None
    if testing is not None:
        tested = np.zeros(len(first), bool)
        np.logical_or.at(tested, group, testing)
        tested = tested[order]
    parts = split(rng, strata[first[order]], testing=tested, apart=apart)
    return Parts(*(np.flatnonzero(np.isin(group, order[part])) for part in parts))


def generator(seed: int) -> np.random.Generator:
    """What draws a seed's split, and then its clients."""
    return np.random.default_rng([seed, 1])


def _split_others(
    rng: np.random.Generator,
    strata: np.ndarray,
    testing: np.ndarray,
    shares: Mapping[str, float],
) -> Parts:
    others = np.flatnonzero(~testing)
    parts = partition.split(rng, strata[others], shares)
    train, heldout = others[parts["train"]], others[parts["heldout"]]
    return Parts(train, heldout, np.flatnonzero(testing))


def _mask(size: int, groups: Sequence[np.ndarray]) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[np.concatenate(groups)] = True
    return mask


# --- Clients drawn at random ----------------------------------------------------------


def dealt(
    pool: Batch,
    strata: np.ndarray,
    heterogeneity: str,
    seed: int,
    *,
    clients: int,
    heldout: int,
    test: int | None = None,
    testing: np.ndarray | None = None,
    apart: Sequence[int] = (),
    same: np.ndarray | None = None,
    kinds: int = 1,
    size: int | None = None,
) -> Federation:
    """Deal a pool's examples to clients, as a federation.

    Args:
      pool: `P` examples.
      strata: `[P]`, the class or task of every example, from 0.
      heterogeneity: see `deal`.
      seed: draws the split, the clients and their tests.
      clients: number of clients.
      heldout: see `federate`.
      test: see `federate`.
      testing: see `split`.
      apart: see `split`.
      same: see `split`.
      kinds: in how many ways clients can see the examples; see `by_kind`. Example `p`
        as of kind `k` has the index `p + k P`.
      size: see `federate`.

    Returns:
      The federation. A client's `task` is its kind where clients differ by kind.

    Raises:
      ValueError: there are too few examples for this many clients.
    """
    rng = generator(seed)
    parts = split(rng, strata, testing=testing, apart=apart, same=same)
    dealt_by, kind = by_kind(heterogeneity, clients, kinds)
    groups = deal(rng, strata[parts.train], dealt_by, clients=clients)
    federation = federate(
        rng,
        pool,
        strata,
        parts,
        [parts.train[group] for group in groups],
        heldout=heldout,
        test=test,
        size=size,
        blocks=kind * len(strata),
    )
    if dealt_by == heterogeneity:
        return federation
    return federation._replace(task=jnp.asarray(kind, jnp.int32))


def by_kind(heterogeneity: str, clients: int, kinds: int) -> tuple[str, np.ndarray]:
    """How to deal examples that clients can see in several ways, and who sees which.

    With heterogeneity `tasks` the kinds go to the clients in turn, who all have the
    same strata: they share the classes and differ in their inputs.

    Args:
      heterogeneity: see `deal`.
      clients: number of clients.
      kinds: number of kinds; 1 changes nothing.

    Returns:
      The heterogeneity to deal the strata by, and the clients' kinds `[C]`, else zeros.
    """
    if heterogeneity == TASKS and kinds > 1:
        return _EVENLY, np.arange(clients) % kinds
    return heterogeneity, np.zeros(clients, int)


def deal(
    rng: np.random.Generator,
    strata: np.ndarray,
    heterogeneity: str,
    *,
    clients: int,
    minimum: int = 8,
) -> list[np.ndarray]:
    """Deal all examples to clients.

    Args:
      rng: draws who gets what.
      strata: `[N]`.
      heterogeneity: a Dirichlet concentration over the strata as text, such as `0.1`;
        `shards2`, or another number: every client holds that many strata, in equal
        parts; or `tasks`: one stratum per client, in turn.
      clients: number of clients.
      minimum: examples that every client gets.

    Returns:
      Disjoint index arrays, one per client.

    Raises:
      ValueError: clients cannot have `minimum` examples each.
    """
    if heterogeneity == TASKS:
        return _shards(rng, strata, clients, 1, minimum)
    if heterogeneity.startswith(SHARDS):
        number = int(heterogeneity.removeprefix(SHARDS))
        return _shards(rng, strata, clients, number, minimum)
    return partition.dirichlet(
        rng,
        strata,
        clients=clients,
        concentration=float(heterogeneity),
        minimum=minimum,
    )


def _shards(
    rng: np.random.Generator,
    strata: np.ndarray,
    clients: int,
    number: int,
    minimum: int,
) -> list[np.ndarray]:
    """Client `c` holds the strata `number * c, ...` in turn, shared evenly."""
    known = np.unique(strata)
    wanted = [
        known[(number * c + np.arange(number)) % len(known)] for c in range(clients)
    ]
    parts: list[list[np.ndarray]] = [[] for _ in wanted]
    for stratum in known:
        holders = [
            c
            for c, strata_of_client in enumerate(wanted)
            if stratum in strata_of_client
        ]
        order = rng.permutation(np.flatnonzero(strata == stratum))
        pieces = np.array_split(order, max(1, len(holders)))
        for client, piece in zip(holders, pieces, strict=False):
            parts[client].append(piece)
    groups = [rng.permutation(np.concatenate(pieces)) for pieces in parts]
    smallest = min(map(len, groups))
    if smallest < minimum:
        raise ValueError(
            f"a client would have {smallest} training examples, fewer than {minimum}; "
            "take fewer clients"
        )
    return groups


def federate(
    rng: np.random.Generator,
    pool: Batch,
    strata: np.ndarray,
    parts: Parts,
    groups: Sequence[np.ndarray],
    *,
    heldout: int,
    test: int | None = None,
    size: int | None = None,
    blocks: np.ndarray | None = None,
    compact: bool = True,
) -> Federation:
    """A federation of clients that train on `groups` of a pool's examples.

    A client gets those of the common held-out and test examples that belong to its
    strata, in its proportions. Clients may share them.

    Args:
      rng: draws every client's held-out and test examples.
      pool: the examples.
      strata: `[P]`, the class or task of every example, from 0.
      parts: the common held-out and test examples.
      groups: the examples that each client trains on.
      heldout: held-out examples per client.
      test: test examples per client, drawn in its proportions. Default: all of its
        strata, weighted to its proportions.
      size: length to which clients are padded. Default: the largest client.
      blocks: `[C]`, added to a client's indices, where the pool repeats the examples in
        blocks that differ. Default: zeros.
      compact: whether to drop each client's test examples of zero weight.

    Returns:
      The federation; a client's `task` is its most frequent stratum.
    """
    blocks = np.zeros(len(groups), int) if blocks is None else blocks
    shares = partition.proportions(strata, groups, int(strata.max()) + 1)

    def draw(places: np.ndarray, number: int) -> list[np.ndarray]:
        draws = [partition.draw_like(rng, strata[places], x, number) for x in shares]
        return _shifted([places[drawn] for drawn in draws], blocks)

    measured = draw(parts.heldout, heldout)
    if test:
        tests = evenly_weighted(_packed(draw(parts.test, test), "test", test))
    else:
        tests = _weighted(strata, parts.test, shares, blocks, compact=compact)
    return Federation(
        pool=pool,
        train=_packed(_shifted(groups, blocks), "training", size),
        heldout=_packed(measured, "held-out", heldout),
        test=tests,
        proportions=jnp.asarray(shares, jnp.float32),
        task=jnp.asarray(shares.argmax(1), jnp.int32),
    )


def _packed(groups: Sequence[np.ndarray], part: str, size: int | None) -> Ragged:
    """Padded groups of examples, none of which may be empty."""
    for client, group in enumerate(groups):
        if not len(group):
            raise ValueError(
                f"client {client} has no {part} examples: its classes or tasks have "
                "too few examples that differ; add some, or take fewer clients"
            )
    return pack(groups, size=size)


def _shifted(groups: Sequence[np.ndarray], blocks: np.ndarray) -> list[np.ndarray]:
    return [group + block for group, block in zip(groups, blocks, strict=True)]


# --- Clients given by the data --------------------------------------------------------


def natural(
    pool: Batch,
    owner: np.ndarray,
    strata: np.ndarray,
    seed: int,
    *,
    heldout: int,
    test: int,
    apart: Sequence[int] = (),
    same: np.ndarray | None = None,
    size: int | None = None,
) -> Federation:
    """A federation of clients that each have their own examples.

    Every client's examples are split in the proportions of `SHARES`: stratum by
    stratum, or regardless of strata if a part would otherwise be empty.

    Args:
      pool: `P` examples.
      owner: `[P]`, the client that every example belongs to, from 0.
      strata: `[P]`, the class or task of every example, from 0.
      seed: draws the splits.
      heldout: the maximum of held-out examples per client.
      test: the maximum of test examples per client.
      apart: seeds whose tests nothing is trained or measured on.
      same: `[P]`, equal for copies. Nobody trains or measures on a copy of what anybody
        is tested on.
      size: length to which clients are padded. Default: the largest client.

    Returns:
      The federation.

    Raises:
      ValueError: a client has too few examples apart from the tests of other seeds, or
        none but copies of tests.
    """
    rng = generator(seed)
    clients = int(owner.max()) + 1
    places = [np.flatnonzero(owner == client) for client in range(clients)]
    of_clients = [strata[mine] for mine in places]
    parts = _split_clients(rng, of_clients, apart)

    def shuffled(name: str) -> list[np.ndarray]:
        pairs = zip(places, parts, strict=True)
        return [mine[rng.permutation(getattr(part, name))] for mine, part in pairs]

    train, measured, tested = (shuffled(name) for name in Parts._fields)
    tested = [mine[:test] for mine in tested]
    if same is not None:
        train, measured = (_without(x, tested, same) for x in (train, measured))
    shares = partition.proportions(strata, train, int(strata.max()) + 1)
    return Federation(
        pool=pool,
        train=_packed(train, "training", size),
        heldout=_packed([mine[:heldout] for mine in measured], "held-out", heldout),
        test=evenly_weighted(_packed(tested, "test", test)),
        proportions=jnp.asarray(shares, jnp.float32),
        task=jnp.arange(clients),
    )


def _without(
    groups: Sequence[np.ndarray], tested: Sequence[np.ndarray], same: np.ndarray
) -> list[np.ndarray]:
    """Groups of examples without the copies of those that are tested."""
    known = np.unique(same[np.concatenate(tested)])
    kept = [mine[~np.isin(same[mine], known)] for mine in groups]
    for client, mine in enumerate(kept):
        if not len(mine):
            raise ValueError(
                f"client {client} has only examples that clients are tested on too: "
                "leave it out of the data"
            )
    return kept


def _split_clients(
    rng: np.random.Generator, strata: Sequence[np.ndarray], apart: Sequence[int]
) -> list[Parts]:
    if not apart:
        return [_split_client(rng, mine) for mine in strata]
    others = [_split_clients(generator(seed), strata, ()) for seed in apart]
    tests = [
        [part.test for part in of_client] for of_client in zip(*others, strict=True)
    ]
    masks = [_mask(*each) for each in zip(map(len, strata), tests, strict=True)]
    return [_split_client(rng, *each) for each in zip(strata, masks, strict=True)]


def _split_client(
    rng: np.random.Generator, strata: np.ndarray, testing: np.ndarray | None = None
) -> Parts:
    """A client's parts, regardless of strata where a part would be empty otherwise."""

    def parts_of(kinds: np.ndarray) -> Parts:
        if testing is None:
            return split(rng, kinds)
        return _split_others(rng, kinds, testing, _APART)

    if testing is not None and (left := (~testing).sum()) < 3:
        raise ValueError(
            f"a client has {left} examples apart from the tests of cells.apart_from, "
            "too few to train and measure on: name fewer seeds there"
        )
    parts = parts_of(strata)
    return parts if all(map(len, parts)) else parts_of(np.zeros_like(strata))


# --- Tests ---------------------------------------------------------------------------


def _weighted(
    strata: np.ndarray,
    test: np.ndarray,
    shares: np.ndarray,
    blocks: np.ndarray,
    *,
    compact: bool,
) -> Weighted:
    """The common test examples, weighted to every client's proportions `[C, M]`."""
    weights = [partition.example_weights(strata[test], share) for share in shares]
    if not compact:
        index = jnp.asarray(blocks[:, None] + test, jnp.int32)
        return Weighted(index, jnp.asarray(np.stack(weights), jnp.float32))
    counted = [np.flatnonzero(weight) for weight in weights]
    longest = max(map(len, counted))
    index = np.full((len(shares), longest), test[0], np.int32)
    weight = np.zeros((len(shares), longest), np.float32)
    for row, (places, values) in enumerate(zip(counted, weights, strict=True)):
        index[row, : len(places)] = test[places]
        weight[row, : len(places)] = values[places]
    index += blocks[:, None].astype(np.int32)
    return Weighted(jnp.asarray(index), jnp.asarray(weight))
