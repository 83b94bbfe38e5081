"""The 1,797 handwritten digits of scikit-learn, as an upstream task and a federation.

Images are 8 x 8, one colour, scaled to [0, 1] (Alpaydin and Kaynak, UCI 1998).
Upstream, client-training, held-out and test images are disjoint. Upstream images are
only ever seen rotated by 90, 180 and 270 degrees; client images are upright.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from potara_jax.data import dealing, partition
from potara_jax.data.dealing import Parts
from potara_jax.data.federation import Batch, Federation
from potara_jax.data.transforms import TRANSFORMS

CLASSES = 10
_SHARES = {"upstream": 0.2, "clients": 0.8}


class Digits(NamedTuple):
    """Images of digits, and a disjoint split of them.

    Attributes:
      images: `[N, 8, 8, 1]`, float32.
      labels: `[N]`, int32.
      upstream: indices of the base's images.
      clients: indices of the clients' images.
    """

    images: np.ndarray
    labels: np.ndarray
    upstream: np.ndarray
    clients: np.ndarray


def load(seed: int) -> Digits:
    """All images; a seed splits them between the base and the clients."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = (bunch.images[..., None] / 16).astype(np.float32)
    labels = bunch.target.astype(np.int32)
    parts = partition.split(np.random.default_rng([seed, 0]), labels, _SHARES)
    return Digits(images, labels, **parts)


def upstream_images(digits: Digits) -> Batch:
    """The upstream images, each rotated by 90, 180 and 270 degrees."""
    images = digits.images[digits.upstream]
    turned = [np.rot90(images, turns, (1, 2)) for turns in (1, 2, 3)]
    labels = np.tile(digits.labels[digits.upstream], 3)
    return Batch(jnp.asarray(np.concatenate(turned)), jnp.asarray(labels))


def split(digits: Digits, seed: int, apart: Sequence[int] = ()) -> Parts:
    """The clients' images, split by a seed.

    Args:
      digits: all images.
      seed: of the split.
      apart: see `dealing.split`.
    """
    rng = dealing.generator(seed)
    parts = dealing.split(rng, digits.labels[digits.clients], apart=apart)
    return Parts(*(digits.clients[part] for part in parts))


def federation(
    digits: Digits,
    heterogeneity: str,
    seed: int,
    *,
    clients: int,
    heldout: int,
    examples: int | None = None,
    apart: Sequence[int] = (),
    size: int | None = None,
) -> Federation:
    """A federation of clients over the digits.

    Args:
      digits: the images.
      heterogeneity: as in `dealing.deal`, except for `tasks`: each group of clients
        transforms its images in its own way, and has all classes equally often.
      seed: draws the split, the clients and their samples.
      clients: number of clients.
      heldout: held-out images per client.
      examples: median of the clients' numbers of training images, which may then belong
        to several clients. Default: all images are dealt, each to one client.
      apart: see `dealing.split`.
      size: length to which clients are padded. Default: the largest client.

    Returns:
      The federation; a client's `task` is its transformation.

    Raises:
      ValueError: there are too few images for this many clients.
    """
    parts, rng = split(digits, seed, apart), np.random.default_rng([seed, 2])
    dealt_by, kinds = dealing.by_kind(heterogeneity, clients, len(TRANSFORMS))
    labels = digits.labels[parts.train]
    groups = _deal(rng, labels, dealt_by, clients=clients, examples=examples)
    federation = dealing.federate(
        rng,
        _pool(digits),
        digits.labels,
        parts,
        [parts.train[group] for group in groups],
        heldout=heldout,
        size=size,
        blocks=kinds * len(digits.labels),
        compact=False,
    )
    return federation._replace(task=jnp.asarray(kinds, jnp.int32))


def _deal(
    rng: np.random.Generator,
    labels: np.ndarray,
    heterogeneity: str,
    *,
    clients: int,
    examples: int | None,
) -> list[np.ndarray]:
    if examples:
        return partition.draw(
            rng,
            labels,
            clients=clients,
            concentration=float(heterogeneity),
            examples=examples,
        )
    try:
        return dealing.deal(rng, labels, heterogeneity, clients=clients)
    except ValueError as error:
        raise ValueError(
            f"{error}, or let them share images: set source.examples"
        ) from None


def _pool(digits: Digits) -> Batch:
    """All images under every transformation, one block per transformation."""
    blocks = [transform(digits.images) for transform in TRANSFORMS.values()]
    labels = np.tile(digits.labels, len(blocks))
    return Batch(jnp.asarray(np.concatenate(blocks)), jnp.asarray(labels))
