"""A Flower `ServerApp` of a deployed federation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO, WARNING
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy

from potara_jax.flower import past, server
from potara_jax.flower.client import Order
from potara_jax.flower.client_app import MakeDeployment, record, suffix
from potara_jax.flower.deployment import Deployment
from potara_jax.flower.messages import Npy, num_bytes, packed
from potara_jax.flower.past import File

Scores = dict[int, dict[str, float]]
Homes = Mapping[int, Sequence[int]]  # the clients of each node
_MOST_EXAMPLES = 2**24  # float32 counts no further


class Rounds(NamedTuple):
    """How the server leads the rounds.

    number: of the rounds. timeout: seconds that it waits for the replies of a round.
    gather: seconds that it waits for all clients at first. evaluate_every: rounds
      between two evaluations; 0: none.
    largest: the magnitude above which a client's number is refused.
    """

    number: int
    timeout: float = 600.0
    gather: float = 600.0
    evaluate_every: int = 0
    largest: float = 1e6


class Outcome(NamedTuple):
    """What the server has in the end.

    server: the algorithm's state, NumPy arrays. scores: of each client's models, by
    name: `score` and `loss` of the one it ends with, and with `personal` also those of
    both parents, `federated-score` and so on. result: Flower's.
    """

    server: Any
    scores: Scores
    result: Result


def as_server_app(
    deployment: MakeDeployment,
    rounds: Callable[[Context], Rounds],
    *,
    nodes: Callable[[Context], Homes | None] | None = None,
    folder: Callable[[Context], Path | None] | None = None,
    on_end: Callable[[Context, Outcome], None] | None = None,
) -> ServerApp:
    """A `ServerApp` of a deployed federation.

    Args:
      deployment: the federation, from the context's `run_config`; as the clients have
        it.
      rounds: how the rounds are led.
      nodes: which clients each node may have, by the number that Flower gives to its
        key. None, or default: a client is the first node's that names it, as long as
        that is there.
      folder: where the server keeps what it has done, from which it goes on if it is
        killed and started again with the same settings. None, or default: it does
        not.
      on_end: called with what the server has in the end.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        given, settings = deployment(context), rounds(context)
        place = None if folder is None else folder(context)
        path = None if place is None else place / "server.npz"
        file = None if path is None else File(path, given, context.run_config)
        homes = None if nodes is None else nodes(context)
        strategy = Deployed(given, settings, homes=homes, file=file)
        result = strategy.lead(grid)
        scores = strategy.finish(grid)
        if on_end:
            on_end(context, Outcome(strategy.past.state.server, scores, result))

    return app


class _Heard(NamedTuple):
    """What the replies to a round of messages bring.

    arrays, metrics: by client. problems: why a client has nothing to take.
    """

    arrays: dict[int, Any]
    metrics: dict[int, Mapping[str, Any]]
    problems: dict[int, str]


class Deployed(Strategy):
    """The strategy of a deployed federation; Flower keeps its state between rounds."""

    def __init__(
        self,
        deployment: Deployment,
        rounds: Rounds,
        *,
        homes: Homes | None = None,
        file: File | None = None,
    ) -> None:
        self.deployment, self.rounds, self.file = deployment, rounds, file
        kept = None if file is None else past.load(file)
        self.past = kept or past.begin(deployment)
        self.begun = self.past.rounds  # of an earlier process
        self.bound = None if homes is None else _bound(homes, deployment.clients)
        self.homes: dict[int, int] = {}
        self._enrolled: set[int] = set()
        self._queries: dict[int, str] = {}
        self._heard: dict[int, int] = {}
        self._orders: dict[int, Order] = {}
        self._down = 0

    def summary(self) -> None:
        """Log whose rounds these are."""
        names = self.deployment.algorithm.name, self.deployment.clients
        log(INFO, "\t└──> %s, %d clients", *names)

    # --- Clients ---------------------------------------------------------------------

    def gather(self, grid: Grid) -> None:
        """Wait for all clients; go on without those that were there once.

        Raises:
          ValueError: some have never come in time.
        """
        until = time.monotonic() + self.rounds.gather
        while missing := set(range(self.deployment.clients)) - set(self.homes):
            if time.monotonic() > until:
                return self._without(missing)
            self._enrol(grid)
            time.sleep(1 if len(self.homes) < self.deployment.clients else 0)
        return None

    def _without(self, missing: set[int]) -> None:
        if unknown := missing - set(self.past.counts):
            names = ", ".join(map(str, sorted(unknown)))
            raise ValueError(f"no node has the clients {names}: start theirs")
        for client in sorted(missing):
            log(WARNING, "client %d is left out: no node has it", client)

    def _enrol(self, grid: Grid) -> None:
        """Ask nodes that are new which clients they have, and hear who has answered."""
        present = set(grid.get_node_ids())
        self.homes = {c: node for c, node in self.homes.items() if node in present}
        self._enrolled &= present
        waiting = {node: id_ for node, id_ in self._queries.items() if node in present}
        new = sorted(present - self._enrolled - set(waiting))
        queries = [Message(RecordDict(), node, "query") for node in new]
        pushed = dict(zip(new, grid.push_messages(queries), strict=True)) if new else {}
        waiting |= {node: id_ for node, id_ in pushed.items() if id_}
        for reply in grid.pull_messages(list(waiting.values())) if waiting else ():
            node = reply.metadata.src_node_id
            waiting.pop(node, None)
            try:
                config = reply.content["config"]
                self._add(node, config["clients"], config["examples"])
                self._enrolled.add(node)
                log(INFO, "node %d has the clients %s", node, [*config["clients"]])
            except (KeyError, TypeError, ValueError) as error:
                log(WARNING, "node %d is left out: %s", node, error)
        self._queries = waiting

    def _add(self, node: int, clients: Any, examples: Any) -> None:
        for client, count in zip(clients, examples, strict=True):
            good = type(client) is type(count) is int and 0 < count < _MOST_EXAMPLES
            if not (good and 0 <= client < self.deployment.clients):
                raise ValueError(f"it names client {client} with {count} examples")
            if self.bound is not None and self.bound[client] != node:
                raise ValueError(
                    f"client {client} is bound to node {self.bound[client]}"
                )
            if self.homes.get(client, node) != node:
                raise ValueError(f"client {client} is on another node already")
        for client, count in zip(clients, examples, strict=True):
            self.homes[client] = node
            self.past.counts.setdefault(client, count)

    # --- Rounds ----------------------------------------------------------------------

    def lead(self, grid: Grid) -> Result:
        """The rounds that are left; the result has the metrics of all."""
        self.gather(grid)
        if self.begun:
            log(INFO, "The federation goes on after round %d", self.begun)
            self._evaluate_again(grid)
        result = self.start(
            grid,
            initial_arrays=record(packed(self.past.state.server)),
            num_rounds=max(self.rounds.number - self.begun, 0),
            timeout=self.rounds.timeout,
        )
        records = lambda of: {n: MetricRecord(metrics) for n, metrics in of.items()}
        result.arrays = record(packed(self.past.state.server))
        result.train_metrics_clientapp = records(self.past.trained)
        result.evaluate_metrics_clientapp = records(self.past.evaluated)
        return result

    def _evaluate_again(self, grid: Grid) -> None:
        """Evaluate the last round, if the server was killed before it had done so."""
        if self.begun not in self.past.evaluated:
            nothing = ArrayRecord(), ConfigRecord()
            messages = self.configure_evaluate(0, *nothing, grid)
            replies = grid.send_and_receive(messages, timeout=self.rounds.timeout)
            self.aggregate_evaluate(0, replies)

    def _keep(self) -> None:
        if self.file is not None:
            past.save(self.file, self.past)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages to a round's cohort."""
        self._enrol(grid)
        number = self.past.rounds
        args = self.deployment, self.past.counts, self.past.secret, number
        self._cohort = server.cohort_of(*args)
        return self._messages("train", number, map(int, self._cohort.client))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """The server's state after a round, and what happened in it."""
        number = self.past.rounds
        heard = self._hear(replies)
        like = self.deployment.messages[self.deployment.place(number)]
        accepted = self._accepted(heard, like)
        args = self._cohort, accepted, self.past.secret, number
        state = server.next_state(self.deployment, self.past.state, *args)
        losses = [_number(heard.metrics[c].get("train-loss")) for c in accepted]
        metrics: dict[str, Any] = {
            "train-loss": float(np.mean(losses)) if losses else float("nan"),
            "cohort": len(self._cohort.client),
            "arrived": len(accepted),
            "bytes-down": self._down,
            "bytes-up": sum(num_bytes(packed(x)) for x in accepted.values()),
        }
        trained = self.past.trained | {number + 1: metrics}
        self.past = self.past._replace(state=state, rounds=number + 1, trained=trained)
        self._keep()  # before any client hears that its message has arrived
        return record(packed(state.server)), MetricRecord(metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages to all clients, in a round that is evaluated."""
        every, number = self.rounds.evaluate_every, self.past.rounds
        if not every or number % every:
            return []
        return self._messages("evaluate", number, sorted(self.homes))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The mean over the clients that have answered."""
        scores = _scores(self._hear(replies).metrics)
        if not scores:
            return None
        mean = lambda name: float(np.mean([of[name] for of in scores.values()]))
        metrics = {name: mean(name) for name in ("score", "loss")}
        evaluated = self.past.evaluated | {self.past.rounds: metrics}
        self.past = self.past._replace(evaluated=evaluated)
        self._keep()
        return MetricRecord({**metrics})

    # --- After the rounds ------------------------------------------------------------

    def finish(self, grid: Grid) -> Scores:
        """Let clients personalise, and have the scores of their models."""
        self._enrol(grid)
        kind = "train.personalise" if self.deployment.personal else "evaluate"
        clients, number = sorted(self.homes), self.past.rounds
        heard = self._sent(grid, self._messages(kind, number, clients))
        if self.deployment.personal is None:
            return _scores(heard.metrics)
        weights, clients = {}, [c for c in heard.metrics if c not in heard.problems]
        if self.deployment.estimator.decide is not None:
            measured = self._accepted(heard, self.deployment.measured())
            counts = {
                c: _number(heard.metrics[c].get("num-examples")) for c in measured
            }
            good = {c: int(n) for c, n in counts.items() if 0 < n < _MOST_EXAMPLES}
            measured = {c: measured[c] for c in good}
            weights = server.merge_weights(self.deployment, measured, good)
            clients = sorted(weights)
        messages = self._messages("train.merge", number, clients, weights)
        return _scores(self._sent(grid, messages).metrics)

    def _sent(self, grid: Grid, messages: Iterable[Message]) -> _Heard:
        replies = grid.send_and_receive(messages, timeout=self.rounds.timeout)
        return self._hear(replies)

    # --- Messages --------------------------------------------------------------------

    def _messages(
        self,
        kind: str,
        number: int,
        clients: Iterable[int],
        weights: Mapping[int, dict[str, Npy]] | None = None,
    ) -> list[Message]:
        """A message to every node of the clients.

        weights: of the clients' merges, in place of the server's state.
        """
        args = self.past.state, clients, self.homes, self._heard, number
        self._orders, self._down = server.orders(*args), 0
        messages = []
        for node, order in self._orders.items():
            config = ConfigRecord(
                {
                    "server-round": number + 1,
                    "number": number,
                    "clients": list(order.clients),
                    "accepted": list(order.accepted),
                    "since": order.since,
                    "federation": self.past.federation,
                }
            )
            content = RecordDict({"config": config})
            if weights is None:
                new = server.news(self.deployment, self.past.state, number, order.since)
                content["arrays"] = record(new)
                self._down += num_bytes(new)
            else:
                for client in order.clients:
                    content[f"arrays.{client}"] = record(weights.get(client, {}))
            messages.append(Message(content, node, kind))
        return messages

    def _hear(self, replies: Iterable[Message]) -> _Heard:
        """What the nodes' replies have of the clients that were asked."""
        heard = _Heard({}, {}, {})
        answered: dict[int, int] = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            order = self._orders.get(node)
            if order is None:
                continue
            if reply.has_error():
                reason = f"its node has an error: {str(reply.error)[:300]}"
                heard.problems.update(dict.fromkeys(order.clients, reason))
                continue
            answered[node] = order.number
            for client in order.clients:
                end = suffix(order.clients, client)
                arrays = reply.content.array_records.get(f"arrays{end}", {})
                metrics = reply.content.metric_records.get(f"metrics{end}", {})
                heard.arrays[client], heard.metrics[client] = dict(arrays), metrics
        for node, order in self._orders.items():  # who was asked
            silent = [c for c in order.clients if c not in heard.problems]
            if node not in answered:
                self._heard.pop(node, None)
                heard.problems.update(dict.fromkeys(silent, "its node is silent"))
        self._heard, self._orders = self._heard | answered, {}
        for client, reason in heard.problems.items():
            log(WARNING, "client %d is left out: %s", client, reason)
        return heard

    def _accepted(self, heard: _Heard, like: Any) -> dict[int, Any]:
        """What has arrived and is not refused; what is, is named."""
        sent = {}
        for client, arrays in heard.arrays.items():
            if heard.metrics[client].get("forgotten") == 1:
                reason = "its node has lost what it kept"
                log(WARNING, "client %d begins again: %s", client, reason)
            if heard.metrics[client].get("arrived", 1) == 1:
                sent[client] = arrays
            else:
                log(WARNING, "client %d is left out: its update is lost", client)
        largest = self.rounds.largest
        accepted, refused = server.checked(sent, like, largest=largest)
        for client, reason in refused.items():
            log(WARNING, "client %d is refused: %s", client, reason)
        return accepted


def _bound(homes: Homes, clients: int) -> dict[int, int]:
    """Every client's node. Raises `ValueError` for what makes no sense."""
    pairs = [(client, node) for node, of in homes.items() for client in of]
    if sorted(client for client, _ in pairs) != [*range(clients)]:
        raise ValueError(
            f"nodes is {dict(homes)}: it must name each of the clients 0 to "
            f"{clients - 1} once"
        )
    return dict(pairs)


def _number(x: Any) -> float:
    """A client's number; NaN for what is none."""
    return float(x) if type(x) in (int, float) else float("nan")


def _scores(metrics: Mapping[int, Mapping[str, Any]]) -> Scores:
    """Every client's scores, but for those that are not finite numbers."""
    each = {
        client: {name: _number(x) for name, x in of.items() if name != "num-examples"}
        for client, of in sorted(metrics.items())
    }
    whole = lambda of: (
        {"score", "loss"} <= set(of) and np.isfinite([*of.values()]).all()
    )
    return {client: of for client, of in each.items() if whole(of)}
