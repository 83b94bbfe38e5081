"""What an algorithm depends on, found by trying it with random numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters.lora import Adapter, Params
from potara_jax.federated.interface import Algorithm, Shared, Size


def sums_alone(algorithm: Algorithm, server: Any, states: Any, upload: Any) -> bool:
    """Whether the clients' sum is all that an algorithm takes from them.

    states: two clients' or more, `[C, ...]`; upload: of one client, or its shapes. An
    aggregate must not change when two uploads are replaced by their mean, nor what is
    sent to a client with that client's state.
    """
    rng = np.random.default_rng(0)
    server = random_like(server, rng)
    uploads = [random_like(upload, rng) for _ in range(2)]
    middle = jax.tree.map(lambda x, y: (x + y) / 2 if is_float(x) else x, *uploads)
    stack = lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    half = jnp.full(2, 0.5)
    aggregate = lambda *each: algorithm.aggregate(server, stack(*each), half)
    sent = [algorithm.broadcast(server, state) for state in _two_states(states, rng)]
    return close(aggregate(*uploads), aggregate(middle, middle)) and close(*sent)


def is_personal(algorithm: Algorithm, shared: Shared, server: Any, states: Any) -> bool:
    """Whether clients of other states end with other models.

    shared: as in a round, with what the server has announced.
    """
    rng = np.random.default_rng(0)
    server = random_like(server, rng)
    received = lambda state: algorithm.broadcast(server, state)
    model = lambda state: algorithm.personalise(shared, received(state), state)
    return not close(*map(model, _two_states(states, rng)))


def changes_base(algorithm: Algorithm, base: Params, adapter: Adapter) -> bool:
    """Whether the base that clients have depends on the server."""
    server = algorithm.init(adapter, Size(2, 2))
    server = random_like(server, np.random.default_rng(0))
    return not close(algorithm.rebase(base, server), base)


def _two_states(states, rng) -> list:
    first = jax.tree.map(lambda x: x[0], states)
    return [random_like(first, rng) for _ in range(2)]


def random_like(tree: Any, rng: np.random.Generator) -> Any:
    """Numbers in [0, 1) in a tree's shapes, and ones where it has integers.

    A server's second moments are then not negative.
    """

    def draw(x):
        value = rng.random(x.shape) if is_float(x) else np.ones(x.shape)
        return jnp.asarray(value, x.dtype)

    return jax.tree.map(draw, tree)


def close(one: Any, other: Any) -> bool:
    """Whether two trees are the same but for rounding."""
    near = lambda x, y: np.allclose(x, y, rtol=1e-3, atol=1e-4)
    return all(jax.tree.leaves(jax.tree.map(near, one, other)))


def is_float(x: Any) -> bool:
    """Whether an array has floating-point numbers."""
    return jnp.issubdtype(x.dtype, jnp.floating)
