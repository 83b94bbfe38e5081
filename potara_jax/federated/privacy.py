"""Client-level differential privacy of a federation (McMahan et al. 2018).

The server clips every client's change to the norm `clip` and adds Gaussian noise to
their sum (arXiv 1710.06963): whatever one client holds moves the sum by `2 clip` at
most. The guarantee is about clients, against everybody but the server itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from potara_jax.federated.probing import is_float

Array = jax.Array


class Privacy(NamedTuple):
    """The norm `clip`, and the noise's standard deviation in the sum over it."""

    clip: float
    noise: float


def clipped(how: Privacy, change: Any) -> Any:
    """A client's change, its numbers together at most `clip` long."""
    norm = optax.tree.norm([x for x in jax.tree.leaves(change) if is_float(x)])
    scale = jnp.minimum(1.0, how.clip / jnp.maximum(norm, 1e-30))
    return jax.tree.map(lambda x: x * scale if is_float(x) else x, change)


def noised(how: Privacy, uploads: Any, arrived: Array, keys: Array) -> Any:
    """Uploads `[c, ...]`, each with its part of the noise that their sum must have.

    arrived: which of them are in the sum, `[c]`; keys: one a client.
    """
    deviation = how.noise * how.clip / jnp.sqrt(jnp.maximum(arrived.sum(), 1))

    def one(upload, arrived, key):
        leaves, structure = jax.tree.flatten(upload)
        keys = jax.random.split(key, len(leaves))
        size = jnp.where(arrived, deviation, 0)
        noisy = [
            x + size * jax.random.normal(k, x.shape, x.dtype) if is_float(x) else x
            for x, k in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy)

    return jax.vmap(one)(uploads, arrived, keys)


def epsilon(
    how: Privacy, *, clients: int, cohort: int, rounds: int, delta: float
) -> float:
    """Epsilon at `delta` after `rounds`, whatever one client's data are replaced by.

    A round's cohort is drawn without replacement (Wang et al. 2019, arXiv 1808.00087).
    The bound is that of `dp-accounting`'s Renyi accountant. Infinite without noise.

    Raises `ValueError` where dp-accounting is not installed.
    """
    if how.noise == 0:
        return float("inf")
    try:
        from dp_accounting import dp_event, privacy_accountant, rdp
    except ImportError:
        raise ValueError(
            "epsilon needs dp-accounting: pip install 'potara_jax[privacy]'"
        ) from None
    sum_ = dp_event.GaussianDpEvent(how.noise / 2)  # clip over the sum's sensitivity
    if cohort < clients:
        sum_ = dp_event.SampledWithoutReplacementDpEvent(clients, cohort, sum_)
    replaced = privacy_accountant.NeighboringRelation.REPLACE_ONE
    accountant = rdp.RdpAccountant(neighboring_relation=replaced)
    accountant.compose(sum_, rounds)
    return float(accountant.get_epsilon(delta))
