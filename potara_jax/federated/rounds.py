"""A round of any algorithm, as one jitted program over the cohort.

Dimension letters: `C` all clients, `c` the cohort, `S` local steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter
from potara_jax.clients.axis import over_clients
from potara_jax.clients.training import client_key
from potara_jax.data.federation import Ragged
from potara_jax.federated import ledger
from potara_jax.federated.aggregation import all_finite, select
from potara_jax.federated.interface import Algorithm, Shared

Array = jax.Array


class Progress(NamedTuple):
    """Where a federation stands: the server's and all clients' states (`[C, ...]`)."""

    server: Any
    states: Any


class Report(NamedTuple):
    """What a round was: for each client of the cohort (`[c]`, or `[c, S]` for losses).

    `finite` is false for a client whose update was left out; `bytes_down` and
    `bytes_up` are what it received and sent.
    """

    cohort: Array
    losses: Array
    finite: Array
    bytes_down: Array
    bytes_up: Array


RoundFn = Callable[
    [Shared, Progress, Ragged, Array, Array | int], tuple[Progress, Report]
]


def start(algorithm: Algorithm, adapters: Adapter) -> Progress:
    """The state before the first round, from every client's adapter `[C, ...]`.

    The server starts from the first client's.
    """
    states = jax.vmap(algorithm.init_client)(adapters)
    server = algorithm.init(jax.tree.map(lambda x: x[0], adapters))
    return jax.tree.map(jnp.copy, Progress(server, states))


def stack(tree: Any, *, clients: int) -> Any:
    """A pytree repeated over a new leading client axis."""
    repeat = lambda x: jnp.tile(x[None], (clients, *[1] * x.ndim))
    return jax.tree.map(repeat, tree)


def make_round(
    algorithm: Algorithm, *, fraction: float = 1.0, chunk: int | None = None
) -> RoundFn:
    """`round(shared, progress, examples, key, number) -> (progress, report)`, jitted.

    A cohort of `ceil(fraction * C)` clients, drawn without replacement from the key and
    the round's number alone, trains from what it receives. A client's randomness
    depends on the key, its number and the round's. Uploads are weighted by the clients'
    numbers of examples. A client whose update or new state is not finite is left out:
    its weight is zero and it keeps its old state. `progress` is donated. Compiled once,
    where `number` is always of one type.

    Raises `ValueError` where the fraction is not in (0, 1].
    """

    if not 0 < fraction <= 1:
        raise ValueError(
            f"the fraction of a cohort is {fraction}: it must be in (0, 1]"
        )

    def run_round(shared, progress, examples, key, number):
        clients = examples.count.shape[0]
        chex.assert_tree_shape_prefix(progress.states, (clients,))
        cohort = draw_cohort(key, number, clients=clients, fraction=fraction)
        pick = lambda tree: jax.tree.map(lambda x: x[cohort], tree)
        states = pick(progress.states)
        one = over_clients(
            _one_client(algorithm),
            in_axes=(None, None, 0, 0, 0, None, None),
            chunk=chunk,
        )
        args = (states, pick(examples), cohort, key, number)
        update, finite, sizes = one(shared, progress.server, *args)
        server = _aggregate(
            algorithm, progress.server, update.upload, finite, examples.count[cohort]
        )
        put = lambda all_, new: all_.at[cohort].set(new)
        states = jax.tree.map(put, progress.states, update.state)
        report = Report(cohort, update.losses, finite, *sizes)
        return Progress(server, states), report

    return jax.jit(run_round, donate_argnums=1)


def draw_cohort(key: Array, number: Array | int, *, clients: int, fraction: float):
    """The clients `[c]` of a round, sorted; all of them where `fraction` is 1."""
    size = max(1, math.ceil(fraction * clients - 1e-9))  # .07 of 100 are 7
    if size == clients:
        return jnp.arange(clients)
    key = jax.random.fold_in(jax.random.fold_in(key, clients), number)
    return jnp.sort(jax.random.choice(key, clients, (size,), replace=False))


def _one_client(algorithm):
    def run(shared, server, state, examples, client, key, number):
        received = algorithm.broadcast(server, state)
        key = client_key(key, client, number)
        update = algorithm.client(shared, received, state, examples, key)
        finite = all_finite((update.upload, update.state, update.losses))
        kept = select(finite, update.state, state)
        nothing = jax.tree.map(jnp.zeros_like, update.upload)
        upload = select(finite, update.upload, nothing)
        sizes = [ledger.payload_bytes(p) for p in (received, update.upload)]
        sizes = jnp.array(sizes[0], jnp.uint32), jnp.array(sizes[1], jnp.uint32)
        return update._replace(state=kept, upload=upload), finite, sizes

    return run


def _aggregate(algorithm, server, uploads, finite, counts):
    weights = counts.astype(jnp.float32) * finite
    total = weights.sum()
    updated = algorithm.aggregate(server, uploads, weights / jnp.maximum(total, 1))
    return select(total > 0, updated, server)


def personalised(algorithm: Algorithm, progress: Progress, *, clients: int) -> Adapter:
    """Every client's model at the end, stacked `[C, ...]`."""

    def one(_, state):
        received = algorithm.broadcast(progress.server, state)
        return algorithm.personalise(received, state)

    return jax.vmap(one)(jnp.arange(clients), progress.states)
