"""Client-level differential privacy of a federation (McMahan et al. 2018).

The server clips every client's change to the norm `clip` and adds Gaussian noise to
their sum (arXiv 1710.06963): whatever one client holds moves the sum by `2 clip` at
most. The guarantee is about clients, against everybody but the server itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from potara_jax.federated.interface import Algorithm

Array = jax.Array


class Privacy(NamedTuple):
    """The norm `clip`, and the noise's standard deviation in the sum over it."""

    clip: float
    noise: float


def clipped(how: Privacy, change: Any) -> Any:
    """A client's change, its numbers together at most `clip` long."""
    norm = optax.tree.norm([x for x in jax.tree.leaves(change) if _is_float(x)])
    scale = jnp.minimum(1.0, how.clip / jnp.maximum(norm, 1e-30))
    return jax.tree.map(lambda x: x * scale if _is_float(x) else x, change)


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
            x + size * jax.random.normal(k, x.shape, x.dtype) if _is_float(x) else x
            for x, k in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy)

    return jax.vmap(one)(uploads, arrived, keys)


def _is_float(x) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


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


def is_private(algorithm: Algorithm, server: Any, states: Any, upload: Any) -> bool:
    """Whether the clients' sum is all that an algorithm takes from them.

    Tried with random numbers in place of the server's state, two clients' `states`
    (`[C, ...]`) and uploads (of the shape of `upload`, one client's): an aggregate must
    not change when both uploads are replaced by their mean, nor what is sent to a
    client with that client's state.
    """
    rng = np.random.default_rng(0)
    server = _random(server, rng)
    uploads = [_random(upload, rng) for _ in range(2)]
    middle = jax.tree.map(lambda x, y: (x + y) / 2 if _is_float(x) else x, *uploads)
    stack = lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    aggregate = lambda *each: algorithm.aggregate(
        server, stack(*each), jnp.full(2, 0.5)
    )
    first = jax.tree.map(lambda x: x[0], states)
    sent = [algorithm.broadcast(server, _random(first, rng)) for _ in range(2)]
    return _close(aggregate(*uploads), aggregate(middle, middle)) and _close(*sent)


def _random(tree, rng):
    """Random numbers in [0, 1): a server's second moments are not negative."""

    def draw(x):
        value = rng.random(x.shape) if _is_float(x) else np.ones(x.shape)
        return jnp.asarray(value, x.dtype)

    return jax.tree.map(draw, tree)


def _close(one, other) -> bool:
    near = lambda x, y: np.allclose(x, y, rtol=1e-3, atol=1e-4)
    return all(jax.tree.leaves(jax.tree.map(near, one, other)))
