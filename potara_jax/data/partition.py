"""Dealing examples to clients by class or task: draws, proportions, splits.

All of this is NumPy on the host, once before training. Dimension letters: `N` examples,
`C` clients, `K` classes, `M` test examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

_TRIES = 1000


def dirichlet(
    rng: np.random.Generator,
    labels: np.ndarray,
    *,
    clients: int,
    concentration: float,
    minimum: int = 8,
) -> list[np.ndarray]:
    """Deal all examples to clients, with class proportions from a Dirichlet.

    Every client draws class proportions `p ~ Dir(concentration)` and a size that is
    log-normal; each class is then shared out in proportion to `size * p` (Hsu et al.
    2019, arXiv 1909.06335, with sizes that differ). Small concentrations leave a client
    with one or two classes.

    Args:
      rng: draws the partition.
      labels: `[N]`, from 0.
      clients: number of clients.
      concentration: of the Dirichlet distribution.
      minimum: examples that every client gets; partitions are redrawn until they have
        it.

    Returns:
      Disjoint index arrays, one per client.

    Raises:
      ValueError: `minimum` is impossible, or none of many draws reached it.
    """
    classes = int(labels.max()) + 1
    if clients * minimum > len(labels):
        raise ValueError(
            f"{clients} clients with {minimum} examples each need "
            f"{clients * minimum} training examples, but there are {len(labels)}; "
            "take fewer clients"
        )
    for _ in range(_TRIES):
        size = rng.lognormal(0.0, 0.5, (clients, 1))
        share = size * rng.dirichlet(np.full(classes, concentration), clients)
        groups = _deal(rng, labels, share)
        if min(map(len, groups)) >= minimum:
            return groups
    raise ValueError(
        f"no partition at Dirichlet {concentration} gives each of {clients} clients "
        f"{minimum} examples; take fewer clients or a larger concentration"
    )


def _deal(
    rng: np.random.Generator, labels: np.ndarray, share: np.ndarray
) -> list[np.ndarray]:
    """Deal each class in proportion to the clients' shares `[C, K]`."""
    groups: list[list[np.ndarray]] = [[] for _ in share]
    for label in range(share.shape[1]):
        order = rng.permutation(np.flatnonzero(labels == label))
        edges = np.cumsum(share[:, label]) / max(share[:, label].sum(), 1e-300)
        cuts = np.round(edges[:-1] * len(order)).astype(int)
        for group, part in zip(groups, np.split(order, cuts), strict=True):
            group.append(part)
    return [rng.permutation(np.concatenate(parts)) for parts in groups]


def draw(
    rng: np.random.Generator,
    labels: np.ndarray,
    *,
    clients: int,
    concentration: float,
    examples: int,
    minimum: int = 8,
) -> list[np.ndarray]:
    """Draw every client's examples independently, so that clients may share them.

    As `dirichlet` otherwise; there can be any number of clients. A client holds no
    example twice: where a class has fewer than it wants, it gets fewer.

    Args:
      rng: draws the examples.
      labels: `[N]`, from 0.
      clients: number of clients.
      concentration: of the Dirichlet distribution.
      examples: median of the clients' log-normal sizes.
      minimum: the smallest size.

    Returns:
      Index arrays, one per client.
    """
    classes = int(labels.max()) + 1
    shares = rng.dirichlet(np.full(classes, concentration), clients)
    sizes = np.maximum(rng.lognormal(np.log(examples), 0.5, clients), minimum)
    by_class = [np.flatnonzero(labels == label) for label in range(classes)]
    return [
        _draw_client(rng, by_class, _largest_remainder(share, round(size)))
        for share, size in zip(shares, sizes, strict=True)
    ]


def _draw_client(
    rng: np.random.Generator, by_class: Sequence[np.ndarray], wanted: np.ndarray
) -> np.ndarray:
    """Distinct examples of each class: as many as wanted, or all of them."""
    parts = [
        rng.choice(places, min(count, len(places)), replace=False)
        for places, count in zip(by_class, wanted, strict=True)
        if count
    ]
    return rng.permutation(np.concatenate(parts))


def proportions(
    labels: np.ndarray, groups: Sequence[np.ndarray], classes: int
) -> np.ndarray:
    """Class proportions `[C, K]` of each client's examples."""
    counts = [np.bincount(labels[group], minlength=classes) for group in groups]
    return np.stack([count / count.sum() for count in counts])


def draw_like(
    rng: np.random.Generator, labels: np.ndarray, proportion: np.ndarray, number: int
) -> np.ndarray:
    """Indices of distinct examples in given class proportions.

    Counts are rounded by largest remainder. A class with fewer examples than its count
    gives all that it has, and the rest is left out.

    Args:
      rng: what they are drawn with.
      labels: of all examples, `[M]`.
      proportion: of each class, `[K]`.
      number: of examples to draw.
    """
    wanted = _largest_remainder(proportion, number)
    parts = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in enumerate(wanted)
    ]
    return rng.permutation(np.concatenate(parts))


def _largest_remainder(proportion: np.ndarray, number: int) -> np.ndarray:
    exact = np.asarray(proportion) * number
    counts = np.floor(exact).astype(int)
    short = number - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
    return counts


def example_weights(labels: np.ndarray, proportion: np.ndarray) -> np.ndarray:
    """Weights `[M]` of common test examples that give them a client's proportions.

    Classes without a test example are left out, and the rest is scaled to sum to one.

    Args:
      labels: of the test examples, `[M]`.
      proportion: of each of the client's classes, `[K]`.

    Raises:
      ValueError: no class has a test example.
    """
    counts = np.bincount(labels, minlength=len(proportion))
    weight = (proportion / np.maximum(counts, 1))[labels]
    if weight.sum() == 0:
        classes = np.flatnonzero(proportion).tolist()
        raise ValueError(
            f"a client holds classes {classes}, and no test example is of any of them"
        )
    return weight / weight.sum()


def split(
    rng: np.random.Generator, labels: np.ndarray, shares: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Disjoint class-balanced parts `{name: indices}` in given shares."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in shares}
    for label in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == label))
        edges = np.cumsum(list(shares.values())) / sum(shares.values())
        cuts = np.round(edges[:-1] * len(order)).astype(int)
        for name, part in zip(shares, np.split(order, cuts), strict=True):
            parts[name].append(part)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}
