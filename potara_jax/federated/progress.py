"""Where a federation is between rounds, and the models that follow from it.

Dimension letters: `C` clients.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters.lora import Adapter
from potara_jax.data.federation import Batch, Ragged, take
from potara_jax.federated import conditions as conditions_
from potara_jax.federated import factors, ledger
from potara_jax.federated.conditions import EVERYBODY, Conditions
from potara_jax.federated.interface import Algorithm, Model, Server, Shared
from potara_jax.federated.wire import Wire, has_feedback
from potara_jax.keys import subkey

Array = jax.Array


class Progress(NamedTuple):
    """The state of all rounds so far.

    Attributes:
      server: the server's state.
      states: the clients' states, `[C, ...]`.
      owed: for each of the algorithm's turns, what compression has kept back of each
        client's uploads (`[C, ...]`); empty where it keeps nothing back.
    """

    server: Server
    states: Any
    owed: tuple[Any, ...] = ()


def start(
    algorithm: Algorithm,
    adapters: Adapter,
    key: Array,
    conditions: Conditions = EVERYBODY,
) -> Progress:
    """The state before the first round, from every client's adapter `[C, ...]`.

    The server starts from the first client's.

    Args:
      algorithm: of the rounds.
      adapters: what the clients start from.
      key: of all rounds; not consumed.
      conditions: of the rounds.

    Raises:
      ValueError: all clients are newcomers.
    """
    clients = len(jax.tree.leaves(adapters)[0])
    states = first_states(algorithm, adapters, jnp.arange(clients), key)
    first = jax.tree.map(lambda x: x[0], adapters)
    server = algorithm.init(first, conditions_.size(conditions, clients))
    return jax.tree.map(jnp.copy, Progress(server, states))


def first_states(
    algorithm: Algorithm, adapters: Adapter, clients: Array, key: Array
) -> Any:
    """The states `[c, ...]` of some clients that have not begun.

    Args:
      algorithm: of the rounds.
      adapters: these clients', `[c, ...]`.
      clients: their numbers, `[c]`.
      key: of all rounds; not consumed.
    """
    key = subkey(key, "states")
    keys = jax.vmap(lambda client: jax.random.fold_in(key, client))(clients)
    return jax.vmap(algorithm.init_client)(adapters, clients, keys)


def stack(tree: Any, *, clients: int) -> Any:
    """A pytree repeated over a new leading client axis."""
    repeat = lambda x: jnp.tile(x[None], (clients, *[1] * x.ndim))
    return jax.tree.map(repeat, tree)


def with_feedback(
    algorithm: Algorithm,
    wire: Wire,
    shared: Shared,
    progress: Progress,
    examples: Ragged,
) -> Progress:
    """`progress` with zeros for what is owed, if the wire's compression has feedback.

    Args:
      algorithm: whose turns send uploads.
      wire: the way of the uploads.
      shared: base and pool.
      progress: before the first round.
      examples: all clients', `[C, N]`.
    """
    if not has_feedback(wire):
        return progress
    clients = len(examples.count)
    zeros = lambda x: jnp.zeros((clients, *x.shape), x.dtype)
    turns = algorithm.turns or (algorithm,)
    uploads = [upload_shape(turn, shared, progress, examples) for turn in turns]
    return progress._replace(owed=tuple(jax.tree.map(zeros, up) for up in uploads))


def upload_shape(
    algorithm: Algorithm, shared: Shared, progress: Progress, examples: Ragged
) -> Any:
    """Shapes and dtypes of what one client sends in a round."""

    def upload(shared: Shared, server: Server, states: Any, examples: Ragged) -> Any:
        shared = known(algorithm, shared, server, 0)
        state, examples = jax.tree.map(lambda x: x[0], (states, examples))
        received = algorithm.broadcast(server, state)
        key = jax.random.key(0)  # only shapes are computed
        return algorithm.client(shared, received, state, examples, key).upload

    return jax.eval_shape(upload, shared, progress.server, progress.states, examples)


def frozen(algorithm: Algorithm) -> Algorithm:
    """An algorithm whose server learns nothing: for clients that join later."""
    return algorithm._replace(
        aggregate=lambda server, uploads, weights: server,
        turns=tuple(frozen(turn) for turn in algorithm.turns),
    )


def replaced(owed: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    """What is owed, with a new value for one of the turns; empty stays empty."""
    return tuple(value if i == place else old for i, old in enumerate(owed))


# --- A pool on the host --------------------------------------------------------------


def is_on_host(pool: Batch) -> bool:
    """Whether a pool is NumPy arrays."""
    return isinstance(jax.tree.leaves(pool)[0], np.ndarray)


def part_of(pool: Batch, examples: Ragged) -> tuple[Batch, Ragged]:
    """The clients' part of a pool, and their examples as indices into that."""
    index: Any = np.asarray(examples.index)
    part = take(pool, index.ravel())
    places: Any = np.arange(index.size, dtype=np.int32).reshape(index.shape)
    return part, examples._replace(index=places)


# --- Models --------------------------------------------------------------------------


def known(
    algorithm: Algorithm, shared: Shared, server: Server, number: Array | int
) -> Shared:
    """What all clients know in round `number`: the base by then, and so on."""
    base, common = algorithm.rebase(shared.base, server), algorithm.common(server)
    return shared._replace(base=base, round=number, common=common)


def personalised(
    algorithm: Algorithm,
    shared: Shared,
    progress: Progress,
    examples: Ragged,
    *,
    number: int = 0,
) -> Model:
    """The model of every client in `progress` after `number` rounds, `[C, ...]`.

    Args:
      algorithm: of the rounds.
      shared: base and pool; the pool may be NumPy arrays.
      progress: after the rounds.
      examples: the same clients', `[C, N]`.
      number: of rounds.
    """
    algorithm = algorithm.turn(number)
    if is_on_host(shared.pool):
        part = part_of(shared.pool, examples)
        pool, examples = jax.tree.map(jnp.asarray, part)
        shared = shared._replace(pool=pool)
    shared = known(algorithm, shared, progress.server, number)

    def one(examples: Ragged, state: Any) -> Model:
        received = algorithm.broadcast(progress.server, state)
        return algorithm.personalise(shared, received, state, examples)

    return jax.vmap(one)(examples, progress.states)


def model_bytes(
    algorithm: Algorithm, progress: Progress, *, clients: int, number: int
) -> Array:
    """Bytes `[C]` that every client receives after `number` rounds, for its model."""
    algorithm = algorithm.turn(number)

    def one(_: Array, state: Any) -> Array:
        received = algorithm.broadcast(progress.server, state)
        announced = algorithm.announce(progress.server)
        return jnp.uint32(ledger.payload_bytes((received, announced)))

    return jax.vmap(one)(jnp.arange(clients), progress.states)


def model_rank(algorithm: Algorithm, shared: Shared, adapter: Adapter) -> int | None:
    """The rank of the clients' models, without computing any.

    None if a model is not one adapter, or not one of the base as it was.

    Args:
      algorithm: whose models.
      shared: base and pool.
      adapter: what a client starts from.
    """
    if algorithm.changes_base:
        return None

    def model(shared: Shared, adapter: Adapter) -> Model:
        progress = start(algorithm, stack(adapter, clients=1), jax.random.key(0))
        first = Ragged(jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32))
        models = personalised(algorithm, shared, progress, first)
        return jax.tree.map(lambda x: x[0], models)

    shapes = jax.eval_shape(model, shared, adapter)
    if jax.tree.structure(shapes) != jax.tree.structure(adapter):
        return None
    return factors.rank_of(shapes)
