"""The mechanism of client-level differential privacy (McMahan et al. 2018).

The server clips every client's change to the norm `clip` and adds Gaussian noise to
the sum of the changes (arXiv 1710.06963), so replacing one client's data moves the sum
by `2 clip` at most. It divides the sum by the size of the cohort, whoever arrives: the
change of a client that is lost counts as zero. `accounting` says what that guarantees.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from potara_jax.federated.aggregation import is_float

Array = jax.Array


class Privacy(NamedTuple):
    """How changes are clipped, and their sum made noisy.

    Attributes:
      clip: the largest norm of a client's change.
      noise: the standard deviation of the sum's noise over `clip`.
    """

    clip: float
    noise: float


def clipped(privacy: Privacy, change: Any) -> Any:
    """A client's change, scaled so that the norm of all its numbers is at most `clip`.

    Integers stay as they are.

    Args:
      privacy: with the norm `clip`.
      change: a pytree of arrays.

    Examples:
      >>> change = {"b": jnp.array([3.0, 4.0])}  # of norm 5
      >>> print(clipped(Privacy(clip=1.0, noise=0.0), change)["b"])
      [0.6 0.8]
    """
    norm = optax.tree.norm([x for x in jax.tree.leaves(change) if is_float(x)])
    scale = jnp.minimum(1.0, privacy.clip / jnp.maximum(norm, 1e-30))
    return jax.tree.map(lambda x: x * scale if is_float(x) else x, change)


def noised(privacy: Privacy, uploads: Any, keys: Array) -> Any:
    """Uploads with noise that adds up to what their sum needs.

    Every client of the cohort has its part of the noise, whether it arrived or not:
    who arrives depends on the clients' data.

    Args:
      privacy: clip and noise.
      uploads: one for each client of the cohort, `[c, ...]`.
      keys: one for each client, `[c]`.
    """
    deviation = privacy.noise * privacy.clip / math.sqrt(len(keys))

    def one(upload: Any, key: Array) -> Any:
        leaves, structure = jax.tree.flatten(upload)
        keys = jax.random.split(key, len(leaves))
        noise = lambda x, k: deviation * jax.random.normal(k, x.shape, x.dtype)
        noisy = [
            x + noise(x, k) if is_float(x) else x
            for x, k in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy)

    return jax.vmap(one)(uploads, keys)
