"""Dealing examples to clients: who holds what, by class and by task.

Everything here is NumPy on the host, done once before training.
"""

from __future__ import annotations

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
    """Disjoint index arrays, one a client, with class proportions from a Dirichlet.

    Every client draws class proportions `p ~ Dir(concentration)` and a size that is
    log-normal; each class's examples are then shared out in proportion to `size * p`.
    All examples are dealt. Small concentrations give a client one or two classes.

    minimum: examples that every client must get; drawn anew until it holds.
    Raises `ValueError` where that cannot be, or is not found in many tries.
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
        dealt = _deal(rng, labels, share)
        if min(map(len, dealt)) >= minimum:
            return dealt
    raise ValueError(
        f"no partition at Dirichlet {concentration} gives each of {clients} clients "
        f"{minimum} examples; take fewer clients or a larger concentration"
    )


def draw(
    rng: np.random.Generator,
    labels: np.ndarray,
    *,
    clients: int,
    concentration: float,
    examples: int,
    minimum: int = 8,
) -> list[np.ndarray]:
    """Index arrays, one a client, drawn for each client by itself.

    As `dirichlet`, but two clients may hold the same example, so that there can be any
    number of them. `examples` is the median of the clients' log-normal sizes. A client
    holds no example twice: where a class has fewer than it wants, it gets fewer.
    """
    classes = int(labels.max()) + 1
    shares = rng.dirichlet(np.full(classes, concentration), clients)
    sizes = np.maximum(rng.lognormal(np.log(examples), 0.5, clients), minimum)
    of_class = [np.flatnonzero(labels == label) for label in range(classes)]
    return [
        _drawn(rng, of_class, _largest_remainder(share, round(size)))
        for share, size in zip(shares, sizes, strict=True)
    ]


def _drawn(rng, of_class, wanted) -> np.ndarray:
    """Distinct examples of each class, as many as wanted or as there are."""
    parts = [
        rng.choice(own, min(count, len(own)), replace=False)
        for own, count in zip(of_class, wanted, strict=True)
        if count
    ]
    return rng.permutation(np.concatenate(parts))


def _deal(rng, labels, share) -> list[np.ndarray]:
    dealt: list[list[np.ndarray]] = [[] for _ in share]
    for label in range(share.shape[1]):
        order = rng.permutation(np.flatnonzero(labels == label))
        edges = np.cumsum(share[:, label]) / max(share[:, label].sum(), 1e-300)
        cuts = np.round(edges[:-1] * len(order)).astype(int)
        for mine, part in zip(dealt, np.split(order, cuts), strict=True):
            mine.append(part)
    return [rng.permutation(np.concatenate(parts)) for parts in dealt]


def proportions(labels: np.ndarray, groups: list[np.ndarray], classes: int):
    """Class proportions `[C, K]` of each client's examples."""
    counts = [np.bincount(labels[group], minlength=classes) for group in groups]
    return np.stack([count / count.sum() for count in counts])


def draw_like(
    rng: np.random.Generator, labels: np.ndarray, proportion: np.ndarray, number: int
) -> np.ndarray:
    """Indices of `number` distinct examples in given class proportions.

    The counts are rounded by largest remainder. Where a class has fewer examples than
    its count, all of them are taken and the rest is left out.
    """
    wanted = _largest_remainder(proportion, number)
    parts = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in enumerate(wanted)
    ]
    return rng.permutation(np.concatenate(parts))


def _largest_remainder(proportion, number):
    exact = np.asarray(proportion) * number
    counts = np.floor(exact).astype(int)
    short = number - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
    return counts


def example_weights(labels: np.ndarray, proportion: np.ndarray) -> np.ndarray:
    """Weights of common test examples `[M]` that give them a client's proportions.

    Classes without a test example are left out, and the rest is scaled to sum to one.
    Raises `ValueError` where that leaves none.
    """
    counts = np.bincount(labels, minlength=len(proportion))
    weight = (proportion / np.maximum(counts, 1))[labels]
    if weight.sum() == 0:
        held = np.flatnonzero(proportion).tolist()
        raise ValueError(f"a client holds classes {held}, of which no test example is")
    return weight / weight.sum()


def split(rng: np.random.Generator, labels: np.ndarray, shares: dict[str, float]):
    """Disjoint, class-balanced splits `{name: indices}` in given shares."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in shares}
    for label in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == label))
        edges = np.cumsum(list(shares.values())) / sum(shares.values())
        cuts = np.round(edges[:-1] * len(order)).astype(int)
        for name, part in zip(shares, np.split(order, cuts), strict=True):
            parts[name].append(part)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}
