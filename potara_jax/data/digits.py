"""The 1,797 handwritten digits of scikit-learn, as an upstream task and a federation.

Images are 8 x 8, one colour, scaled to [0, 1] (Alpaydin and Kaynak, UCI 1998).
Upstream, client-training, held-out and test images are disjoint; upstream images are
only ever seen turned by 90, 180 and 270 degrees, client images never.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from potara_jax.data import dealing, partition
from potara_jax.data.federation import Batch, Federation, Weighted, pack

CLASSES = 10
UPSTREAM_SHARE = 0.2
CLIENT_SHARES = {"train": 0.6, "heldout": 0.2, "test": 0.2}

# What a group of clients does to its images when heterogeneity is of tasks.
TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "upright": lambda x: x,
    "mirrored": lambda x: x[:, :, ::-1],
    "negative": lambda x: 1 - x,
    "transposed": lambda x: x.swapaxes(1, 2),
}


class Splits(NamedTuple):
    """Images `[N, 8, 8, 1]`, labels `[N]`, and the indices of the disjoint parts."""

    images: np.ndarray
    labels: np.ndarray
    parts: dict[str, np.ndarray]


def load(seed: int) -> Splits:
    """All images, split by a seed into `upstream` and `clients`."""
    bunch = load_digits()
    images = (bunch.images[..., None] / 16).astype(np.float32)
    labels = bunch.target.astype(np.int32)
    shares = {"upstream": UPSTREAM_SHARE, "clients": 1 - UPSTREAM_SHARE}
    parts = partition.split(np.random.default_rng([seed, 0]), labels, shares)
    return Splits(images, labels, parts)


def deal(splits: Splits, seed: int) -> Splits:
    """The clients' images, split by a seed into `train`, `heldout` and `test`."""
    own = splits.parts["clients"]
    rng = np.random.default_rng([seed, 1])
    parts = partition.split(rng, splits.labels[own], CLIENT_SHARES)
    dealt = {name: own[index] for name, index in parts.items()}
    return splits._replace(parts=splits.parts | dealt)


def upstream(splits: Splits) -> Batch:
    """The upstream images, each turned by 90, 180 and 270 degrees."""
    index = splits.parts["upstream"]
    turned = [np.rot90(splits.images[index], turns, (1, 2)) for turns in (1, 2, 3)]
    labels = np.tile(splits.labels[index], 3)
    return Batch(jnp.asarray(np.concatenate(turned)), jnp.asarray(labels))


def federation(
    splits: Splits,
    heterogeneity: str,
    *,
    clients: int,
    heldout: int,
    seed: int,
    size: int | None = None,
    examples: int | None = None,
) -> Federation:
    """Clients over the digits, whose `splits` have been dealt.

    heterogeneity: a Dirichlet concentration as text (`0.1`), or `tasks`: equal groups
      of clients, each with its own transformation of the images and all classes alike.
    heldout: samples of each client that training does not see, from the common held-out
      images in the client's class proportions; two clients may hold the same image.
    size: the length to which clients are padded; default the largest client.
    examples: the clients' median number of training images, which they then draw, each
      by itself, so that two may hold the same; default: all are dealt out, once each.
    """
    rng = np.random.default_rng([seed, 2])
    groups = _deal(rng, splits, heterogeneity, clients, examples)
    shares = partition.proportions(splits.labels, groups, CLASSES)
    drawn = [_draw(rng, splits, share, heldout) for share in shares]
    test = splits.parts["test"]
    weights = [partition.example_weights(splits.labels[test], s) for s in shares]
    tasks = np.arange(clients) % len(TRANSFORMS) * (heterogeneity == dealing.TASKS)
    offset = tasks * len(splits.labels)
    shift = lambda parts: [p + o for p, o in zip(parts, offset, strict=True)]
    return Federation(
        pool=_pool(splits),
        train=pack(shift(groups), size=size),
        heldout=pack(shift(drawn), size=heldout),
        test=Weighted(
            jnp.asarray(offset[:, None] + test, jnp.int32),
            jnp.asarray(np.stack(weights), jnp.float32),
        ),
        proportions=jnp.asarray(shares, jnp.float32),
        task=jnp.asarray(tasks, jnp.int32),
    )


def _deal(rng, splits, heterogeneity, clients, examples) -> list[np.ndarray]:
    train = splits.parts["train"]
    labels = splits.labels[train]
    kind = "100" if heterogeneity == dealing.TASKS else heterogeneity
    if examples:
        how = {"clients": clients, "concentration": float(kind), "examples": examples}
        dealt = partition.draw(rng, labels, **how)
    else:
        dealt = _once(rng, labels, kind, clients)
    return [train[group] for group in dealt]


def _once(rng, labels, heterogeneity, clients) -> list[np.ndarray]:
    """All images, each to one client."""
    try:
        return dealing.deal(rng, labels, heterogeneity, clients=clients)
    except ValueError as error:
        raise ValueError(f"{error}, or let them share images (--examples)") from None


def _draw(rng, splits, proportion, number) -> np.ndarray:
    index = splits.parts["heldout"]
    return index[partition.draw_like(rng, splits.labels[index], proportion, number)]


def _pool(splits) -> Batch:
    """All images under every transformation, one block a transformation."""
    blocks = [transform(splits.images) for transform in TRANSFORMS.values()]
    labels = np.tile(splits.labels, len(blocks))
    return Batch(jnp.asarray(np.concatenate(blocks)), jnp.asarray(labels))
