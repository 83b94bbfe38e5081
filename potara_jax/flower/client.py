"""A node's clients: what they do with a message, and what they keep between two.

A node may have many clients, which are computed at once. What a client keeps of a round
holds once the server says that its message has arrived: until then it is pending, so
that a client whose message is lost or refused stays as it was.

Dimension letters: `k` the node's clients in a message, `N` examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax import federated
from potara_jax.adapters.lora import Adapter
from potara_jax.clients.axis import AT_ONCE, Layout, over_clients
from potara_jax.data.federation import Federation, Ragged, take
from potara_jax.evaluation.metrics import evaluator
from potara_jax.federated.algorithms.local import local_only
from potara_jax.federated.cohort_round import (
    Members,
    Trained,
    client_round,
    drawn_for,
    make_cohort_round,
)
from potara_jax.federated.interface import Server, Shared
from potara_jax.federated.progress import (
    Progress,
    first_states,
    known,
    personalised,
    replaced,
    with_feedback,
)
from potara_jax.federated.streaming import Rows
from potara_jax.flower.deployment import Deployment
from potara_jax.flower.messages import Npy, Stored, array_of, npy, packed, read
from potara_jax.keys import subkey
from potara_jax.merging import Client, merge, pair
from potara_jax.merging.curvature import real

Array = jax.Array
Memory = dict[str, dict[str, Stored]]  # groups of arrays, such as `client.7`
Metrics = dict[str, int | float]
_INT = np.dtype(np.int32)


class Node(NamedTuple):
    """A node's clients: their numbers in the federation `[k]`, and what they hold."""

    clients: tuple[int, ...]
    federation: Federation
    layout: Layout = AT_ONCE


class Order(NamedTuple):
    """What a message asks for, beside its arrays.

    number: of the round. clients: who of the node is asked. since: the round of the
    last message whose arrays the node has, -1 for none. accepted: for each client, the
    last round whose message has arrived, -1 for none.
    """

    number: int
    clients: tuple[int, ...]
    since: int
    accepted: tuple[int, ...]


class Reply(NamedTuple):
    """What one client sends: arrays by name, and numbers by name."""

    arrays: dict[str, Npy]
    metrics: Metrics


Replies = dict[int, Reply]


# --- A round -------------------------------------------------------------------------


def train(
    deployment: Deployment,
    node: Node,
    memory: Memory,
    arrays: dict[str, Stored],
    order: Order,
) -> tuple[Replies, Memory]:
    """A round of the node's clients: their messages, and what is kept.

    A client that is lost under the deployment's conditions, or whose update is not
    finite, sends no arrays.

    Args:
      deployment: the federation.
      node: the clients' examples.
      memory: what the node has kept.
      arrays: of the message.
      order: what the message asks for.

    Raises:
      ValueError: the server counts on arrays that the node does not have.
    """
    server, view, memory = _received(deployment, node, memory, arrays, order)
    program = _program(deployment, node.layout, deployment.place(order.number))
    of_clients = view.numbers, view.rows, view.examples
    result = program(view.shared, server, *of_clients, np.int32(order.number))
    trained, lost = jax.device_get(result)
    replies: Replies = {}
    for at, client in enumerate(order.clients):
        one, losses = _row(trained, at), trained.losses[at]
        finite = bool(one.finite)
        arrived = finite and not lost[at]
        loss = float(np.nanmean(losses)) if finite else float("nan")
        count = int(view.examples.count[at])
        metrics = {"train-loss": loss, "arrived": int(arrived), "num-examples": count}
        forgotten = order.accepted[at] >= 0 and f"client.{client}" not in memory
        metrics |= {"forgotten": 1} if forgotten and jax.tree.leaves(view.rows) else {}
        replies[client] = Reply(packed(one.message) if arrived else {}, metrics)
        old = _row(view.rows.owed, at)
        owed = replaced(old, deployment.place(order.number), one.owed)
        rows = Rows(one.state, owed)
        memory[f"pending.{client}"] = _pending(order.number, rows)
    return replies, memory


class _View(NamedTuple):
    """What the clients of a message know and hold."""

    shared: Shared
    numbers: Any
    rows: Rows
    examples: Ragged
    heldout: Ragged
    places: np.ndarray


@cache
def _program(deployment: Deployment, layout: Layout, place: int) -> Callable[..., Any]:
    """A round of `k` clients in one of the algorithm's turns, jitted."""
    turn = deployment.turn(place)
    run = client_round(turn, deployment.wire)

    def one(
        shared: Shared,
        server: Server,
        client: Array,
        rows: Rows,
        examples: Ragged,
        number: Array,
    ) -> tuple[Trained, Array]:
        shared = known(turn, shared, server, number)
        key, examples, lost = drawn_for(
            deployment.conditions, client, examples, deployment.key, number
        )
        received = turn.broadcast(server, rows.state)
        owed = rows.owed[place] if rows.owed else ()
        return run(shared, received, rows.state, owed, examples, key), lost

    axes = (None, None, 0, 0, 0, None)
    return jax.jit(over_clients(one, in_axes=axes, layout=layout))


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _row(tree: Any, at: int) -> Any:
    return jax.tree.map(lambda x: np.asarray(x)[at], tree)


# --- What is kept --------------------------------------------------------------------


def _received(
    deployment: Deployment,
    node: Node,
    memory: Memory,
    arrays: dict[str, Stored],
    order: Order,
) -> tuple[Server, _View, Memory]:
    """What a message changes: the server as clients know it, and what they hold."""
    server, memory = _hear(deployment, memory, arrays, order)
    return server, _view(deployment, node, memory, server, order), memory


def _hear(
    deployment: Deployment, memory: Memory, arrays: dict[str, Stored], order: Order
) -> tuple[Server, Memory]:
    """The server's state, as far as clients know it, and what is kept since."""
    heard = memory.get("heard", {})
    last = int(array_of(heard, "heard", (), _INT)) if heard else -1
    if order.since not in (-1, last):
        raise ValueError(
            f"the server counts on its message of round {order.since}, and this node "
            f"has that of round {last}: it will send everything"
        )
    view = memory.get("view", {}) | arrays
    memory = memory | {
        "view": view,
        "heard": {"heard": npy(np.array(order.number, _INT))},
    }
    for client, accepted in zip(order.clients, order.accepted, strict=True):
        pending = memory.pop(f"pending.{client}", None)
        if pending and int(array_of(pending, "round", (), _INT)) == accepted:
            memory[f"client.{client}"] = pending
    first = deployment.first_server
    return read(packed(first) | view, first), memory


def _pending(number: int, rows: Rows) -> dict[str, Stored]:
    return dict(packed({"round": np.int32(number), "rows": rows}))


def _view(
    deployment: Deployment, node: Node, memory: Memory, server: Server, order: Order
) -> _View:
    shared = Shared(deployment.base, node.federation.pool)
    places = np.array([node.clients.index(client) for client in order.clients])
    at = lambda ragged: jax.tree.map(lambda x: np.asarray(x)[places], ragged)
    examples, heldout = at(node.federation.train), at(node.federation.heldout)
    numbers = np.array(order.clients, np.int32)
    first = _first_rows(deployment)(shared, server, numbers, examples)

    def newest(at: int, client: int) -> Rows:
        begin = _row(first, at)
        kept = memory.get(f"client.{client}")
        like = {"round": np.int32(0), "rows": begin}
        return read(kept, like)["rows"] if kept else begin

    each = [newest(at, client) for at, client in enumerate(order.clients)]
    return _View(shared, numbers, _stack(each), examples, heldout, places)


@cache
def _first_rows(deployment: Deployment) -> Callable[..., Rows]:
    """What clients keep that have not begun, `[k, ...]`, jitted."""
    algorithm, wire = deployment.algorithm, deployment.wire

    def rows(shared: Shared, server: Server, numbers: Array, examples: Ragged) -> Rows:
        adapters = federated.stack(deployment.adapter, clients=len(numbers))
        states = first_states(algorithm, adapters, numbers, deployment.key)
        begin = Progress(server, states)
        begin = with_feedback(algorithm, wire, shared, begin, examples)
        return Rows(begin.states, begin.owed)

    return jax.jit(rows)


# --- Models --------------------------------------------------------------------------


def evaluate(
    deployment: Deployment,
    node: Node,
    memory: Memory,
    arrays: dict[str, Stored],
    order: Order,
) -> tuple[Replies, Memory]:
    """The scores of the algorithm's models on the clients' tests."""
    server, view, memory = _received(deployment, node, memory, arrays, order)
    models = _models(deployment, view, server, order.number)
    return _scored(deployment, node, view, server, order, {"": models}), memory


def personalise(
    deployment: Deployment,
    node: Node,
    memory: Memory,
    arrays: dict[str, Stored],
    order: Order,
) -> tuple[Replies, Memory]:
    """Both models of the node's clients, and what their merge weights are made of."""
    server, view, memory = _received(deployment, node, memory, arrays, order)
    models = _models(deployment, view, server, order.number), _local(deployment, view)
    measured = _measure(deployment, view, models)
    together = deployment.estimator.decide is not None
    replies: Replies = {}
    for at, client in enumerate(order.clients):
        kept = dict(zip(("federated", "local"), _row(models, at), strict=True))
        mine = _row(measured, at)
        kept |= {} if together else {"weight": mine.weight}
        memory[f"models.{client}"] = dict(packed(kept))
        metrics: Metrics = {"num-examples": int(view.heldout.count[at])}
        replies[client] = Reply(packed(mine) if together else {}, metrics)
    return replies, memory


def merge_models(
    deployment: Deployment,
    node: Node,
    memory: Memory,
    weights: dict[int, dict[str, Stored]],
    order: Order,
) -> tuple[Replies, Memory]:
    """The scores of merged models, which the node keeps as `personal.<client>`."""
    like = dict.fromkeys(("federated", "local"), deployment.adapter)
    like |= {"weight": deployment.weight()}
    kept = [memory[f"models.{c}"] | weights.get(c, {}) for c in order.clients]
    models = _stack([read(arrays, like) for arrays in kept])
    server, view, memory = _received(deployment, node, memory, {}, order)
    merged = _merge(deployment, view, models)
    for at, client in enumerate(order.clients):
        memory[f"personal.{client}"] = dict(packed(_row(merged, at)))
    both = {f"{name}-": models[name] for name in ("federated", "local")}
    models = both | {"": merged}
    return _scored(deployment, node, view, server, order, models), memory


def _models(deployment: Deployment, view: _View, server: Server, number: int) -> Any:
    """The algorithm's models `[k, ...]` after a number of rounds."""
    progress = Progress(server, *view.rows)
    make = partial(personalised, deployment.algorithm, number=number)
    return jax.jit(make)(view.shared, progress, view.examples)


def _local(deployment: Deployment, view: _View) -> Adapter:
    """Every client's local adapter `[k, ...]`."""
    personal = deployment.personal
    assert personal, "local models are trained only with `personal`"
    algorithm = local_only(deployment.task, personal.train)
    run = jax.jit(make_cohort_round(algorithm))
    adapters = federated.stack(deployment.adapter, clients=len(view.numbers))
    weight = jnp.ones(len(view.numbers))
    members = Members(view.numbers, weight, view.examples, adapters)
    for number in range(personal.rounds):
        args = view.shared, (), members, deployment.local_key, np.int32(number)
        _, members, _ = run(*args)
        members = members._replace(examples=view.examples)
    return members.states


def _clients(deployment: Deployment, view: _View, models: Any) -> Client:
    """All that merging asks of the clients `[k, ...]`, but for the base."""
    samples = take(view.shared.pool, view.heldout.index)
    key = partial(jax.random.fold_in, deployment.merging_key)
    return Client(
        deployment.base,
        *models,
        examples=samples,
        weight=jax.vmap(real)(samples, view.heldout.count),
        trained_on=view.examples.count,
        key=jax.vmap(key)(view.numbers),
    )


_AXES: Any = Client._make((None, 0, 0, 0, 0, 0, 0))


def _measure(deployment: Deployment, view: _View, models: Any) -> Any:
    measure = jax.vmap(deployment.estimator.measure, in_axes=(_AXES,))
    return jax.jit(measure)(_clients(deployment, view, models))


def _merge(deployment: Deployment, view: _View, models: Any) -> Adapter:
    def one(client: Client, weight: Any) -> Adapter:
        weights = weight if isinstance(weight, tuple) else pair(weight)
        key = subkey(client.key, "merge")
        return merge((client.federated, client.local), weights, key=key)

    both = models["federated"], models["local"]
    clients = _clients(deployment, view, both)
    return jax.jit(jax.vmap(one, in_axes=(_AXES, 0)))(clients, models["weight"])


def _scored(
    deployment: Deployment,
    node: Node,
    view: _View,
    server: Server,
    order: Order,
    models: dict[str, Any],
) -> Replies:
    """The score and the loss of models of each client, by prefixes of their names."""
    turn = deployment.turn(order.number)
    shared = known(turn, view.shared, server, order.number)
    score = evaluator(turn.predict(deployment.task), layout=Layout(chunk=1))
    test = jax.tree.map(lambda x: x[view.places], node.federation.test)
    scores = {name: score(shared, model, test) for name, model in models.items()}

    def metrics(at: int) -> Metrics:
        values: Metrics = {}
        for name, both in scores.items():
            values[f"{name}score"] = float(both.accuracy[at])
            values[f"{name}loss"] = float(both.loss[at])
        return values | {"num-examples": int(view.examples.count[at])}

    return {client: Reply({}, metrics(at)) for at, client in enumerate(order.clients)}
