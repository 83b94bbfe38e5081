"""A Flower `ClientApp` of a deployed federation.

A message is answered by a new process, so what the clients keep is in the context's
state, or in files of a folder on the node.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from potara_jax.flower import client
from potara_jax.flower.client import Memory, Node, Order, Replies
from potara_jax.flower.deployment import Deployment
from potara_jax.flower.past import stored, write

Answer = Callable[..., tuple[Replies, Memory]]
MakeDeployment = Callable[[Context], Deployment]


def as_client_app(
    deployment: MakeDeployment,
    data: Callable[[Context], Node],
    *,
    folder: Callable[[Context], Path | None] | None = None,
) -> ClientApp:
    """A `ClientApp` of a deployed federation.

    Args:
      deployment: the federation, from the context's `run_config`; as the server has
        it.
      data: the node's clients and their examples, from the context's `node_config`.
      folder: where the node keeps its clients' states and models, for those that are
        large or shall outlive the run or the node's process: in a folder for each
        federation. None, or default: in the context's state.
    """
    app = ClientApp()

    def answered(answer: Answer, message: Message, context: Context) -> Message:
        place = _place(folder, message, context)
        before, order = _memory(context, place), _order(message.content["config"])
        args = deployment(context), data(context), before
        replies, after = answer(*args, _arrays(message, order), order)
        _remember(context, place, before, after)
        return Message(_records(replies, order), reply_to=message)

    @app.query()
    def enrol(message: Message, context: Context) -> Message:
        node = data(context)
        counts = [int(count) for count in node.federation.train.count]
        config = ConfigRecord({"clients": [*node.clients], "examples": counts})
        return Message(RecordDict({"config": config}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answered(client.train, message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return answered(client.evaluate, message, context)

    @app.train("personalise")
    def personalise(message: Message, context: Context) -> Message:
        return answered(client.personalise, message, context)

    @app.train("merge")
    def merge(message: Message, context: Context) -> Message:
        return answered(client.merge_models, message, context)

    return app


# --- Messages ------------------------------------------------------------------------


def record(arrays: dict[str, Any]) -> ArrayRecord:
    """Arrays as Flower has them."""
    of = lambda x: Array(x.dtype, tuple(x.shape), x.stype, x.data)
    return ArrayRecord({name: of(array) for name, array in arrays.items()})


def suffix(clients: tuple[int, ...], number: int) -> str:
    """What follows the name of a client's records, where a message has several."""
    return "" if len(clients) == 1 else f".{number}"


def _order(config: Any) -> Order:
    each = (tuple(config[name]) for name in ("clients", "accepted"))
    clients, accepted = each
    return Order(config["number"], clients, config["since"], accepted)


def _arrays(message: Message, order: Order) -> Any:
    """The arrays for all clients, or by client where each has others."""
    records = message.content.array_records
    if "arrays" in records:
        return dict(records["arrays"])
    return {c: dict(records.get(f"arrays.{c}", {})) for c in order.clients}


def _records(replies: Replies, order: Order) -> RecordDict:
    content = RecordDict()
    for number, reply in replies.items():
        end = suffix(order.clients, number)
        content[f"arrays{end}"] = record(reply.arrays)
        content[f"metrics{end}"] = MetricRecord({**reply.metrics})
    return content


# --- What is kept --------------------------------------------------------------------


def _place(
    folder: Callable[[Context], Path | None] | None, message: Message, context: Context
) -> Path | None:
    """Where the clients of a federation keep what they know, if not in the context.

    Raises:
      ValueError: the server's name of the federation is none.
    """
    place = None if folder is None else folder(context)
    if place is None:
        return None
    name = str(message.content["config"]["federation"])
    if not re.fullmatch("[0-9a-f]{16}", name):
        raise ValueError(f"the server calls its federation {name[:40]!r}")
    return place / name


def _memory(context: Context, folder: Path | None) -> Memory:
    if folder is None:
        records = context.state.array_records
        return {group: dict(arrays) for group, arrays in records.items()}
    return {path.stem: stored(path) for path in folder.glob("*.npz")}


def _remember(
    context: Context, folder: Path | None, before: Memory, after: Memory
) -> None:
    """Keep the groups that are new, and drop those that are gone."""
    new = {group: x for group, x in after.items() if x is not before.get(group)}
    gone = set(before) - set(after)
    if folder is None:
        for group in gone:
            del context.state[group]
        for group, arrays in new.items():
            context.state[group] = record(arrays)
        return
    for group, arrays in new.items():
        write(folder / f"{group}.npz", arrays)
    for group in gone:
        (folder / f"{group}.npz").unlink()
