"""What the server and the clients of a deployed federation agree on.

Server and clients compute with the same functions as a simulated round, from keys that
are derived in the same way, so that both give the same models.

Dimension letters: `C` clients, `c` the cohort.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

from potara_jax import federated
from potara_jax.adapters.lora import Adapter, Params
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.data.federation import Batch, Ragged
from potara_jax.federated import conditions as conditions_
from potara_jax.federated import wire as wire_
from potara_jax.federated.cohort_round import Trained, client_round
from potara_jax.federated.conditions import EVERYBODY, Conditions
from potara_jax.federated.interface import Algorithm, Server, Shared
from potara_jax.federated.progress import known
from potara_jax.federated.wire import AS_IT_IS, Wire
from potara_jax.keys import subkey
from potara_jax.merging import Client, Estimator, auto

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Personal:
    """How clients personalise after the rounds.

    Each trains a local adapter, and merges the federated one and it by a weight that is
    measured on its held-out samples.

    train: a round of local training. rounds: their number. estimator: the weight.
      Default: `merging.auto`, for which a client sends a few numbers, and gets one.
    """

    train: Train
    rounds: int
    estimator: Estimator | None = None


class Reads(NamedTuple):
    """Which leaves of the server's state a client needs, true or false for each.

    broadcast: for what it receives. known: for the base, and for what all clients know
    of the server; at first, every client knows them.
    """

    broadcast: list[bool]
    known: list[bool]


@dataclasses.dataclass(frozen=True, eq=False)
class Deployment:
    """A federation, as its server and all of its clients know it.

    task, algorithm: what is learned, and how.
    base: the frozen parameters; the server reads their shapes alone.
    adapter: what the server and every client start from.
    example: a batch of one example, `[1, ...]`, for its shapes.
    clients: `C`; they are numbered from 0.
    key: of everything drawn at random.
    conditions: who takes part, and who finishes.
    wire: what happens to uploads on their way.
    personal: how clients personalise after the rounds; default: they do not.

    Raises:
      ValueError: conditions are out of their ranges, the wire makes no sense for the
        algorithm, or its models cannot be merged.
    """

    task: Task
    algorithm: Algorithm
    base: Params
    adapter: Adapter
    example: Batch
    clients: int
    key: Array
    conditions: Conditions = EVERYBODY
    wire: Wire = AS_IT_IS
    personal: Personal | None = None

    def __post_init__(self) -> None:
        conditions_.check(self.conditions)
        wire_.check(self.wire, self.algorithm)
        if self.personal and self._model_rank() is None:
            raise ValueError(
                f"{self.algorithm.name}'s model is not one adapter of the base, to "
                "merge with a local one: choose another algorithm, or no personal"
            )

    def _model_rank(self) -> int | None:
        return federated.model_rank(self.algorithm, self.shapes, self.adapter)

    def turn(self, number: int) -> Algorithm:
        """The algorithm of a round."""
        return self.algorithm.turn(number)

    def place(self, number: int) -> int:
        """The place of a round's turn among the algorithm's turns."""
        return number % len(self._places)

    @property
    def _places(self) -> range:
        return range(len(self.algorithm.turns) or 1)

    @cached_property
    def shapes(self) -> Shared:
        """The base and a pool of one example, as shapes."""
        return jax.eval_shape(lambda x: x, Shared(self.base, self.example))

    @cached_property
    def first_server(self) -> Server:
        """The server's state before the first round, which every client computes."""
        size = conditions_.size(self.conditions, self.clients)
        return self.algorithm.init(self.adapter, size)

    @property
    def estimator(self) -> Estimator:
        """The merge weight."""
        assert self.personal, "there is a merge only with `personal`"
        return self.personal.estimator or auto(self.task.loss, self.task.logits)

    @property
    def local_key(self) -> Array:
        """The key of the local rounds."""
        return subkey(self.key, "local")

    @property
    def merging_key(self) -> Array:
        """The key of the weights and the merge."""
        return subkey(self.key, "merging")

    # --- What travels ----------------------------------------------------------------

    @cached_property
    def messages(self) -> tuple[Any, ...]:
        """The shapes of what one client sends in a round, for each turn."""
        part = lambda trained: trained.message
        return tuple(self._traced(place, part)[1] for place in self._places)

    def measured(self) -> Any:
        """The shapes of what one client sends for its merge weight."""
        number = jnp.int32(0)
        client = (self.base, self.adapter, self.adapter, self.example)
        rest = (jnp.ones(1), number, self.key)
        measure = lambda *args: self.estimator.measure(Client(*args))
        return jax.eval_shape(measure, *client, *rest)

    def weight(self) -> Any:
        """The shapes of one client's merge weight."""
        measured = self.measured()
        if self.estimator.decide is None:
            return measured.weight
        stacked = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), measured)
        counts = jnp.ones(1, jnp.int32)
        weight = jax.eval_shape(self.estimator.decide, stacked, counts).weight
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), weight
        )

    @cached_property
    def reads(self) -> tuple[Reads, ...]:
        """Which leaves of the server's state a client needs in a round of each turn."""
        return tuple(self._reads(self.turn(place)) for place in self._places)

    def _reads(self, turn: Algorithm) -> Reads:
        def heard(server: Server, state: Any) -> Any:
            return turn.broadcast(server, state)

        def seen(server: Server, shared: Shared, number: Array) -> Any:
            shared = known(turn, shared, server, number)
            return shared.base, shared.common

        server, state = self.first_server, self._one()[0]
        both = (heard, (server, state)), (seen, (server, self.shapes, jnp.int32(0)))
        leaves = len(jax.tree.leaves(server))
        used = (_pruned(jax.make_jaxpr(fn)(*args))[1] for fn, args in both)
        return Reads(*(mask[:leaves] for mask in used))

    def reference(self, place: int) -> Callable[[Server, Array, Array], Any]:
        """`reference(server, key, number)` of an upload, as the server knows it.

        The client's key in the round is all that it takes beside the server's state, so
        the client's training is cut out of it.

        Raises:
          ValueError: it depends on what only the client knows.
        """
        traced, shape = self._traced(place, lambda trained: trained.reference)
        pruned, used = _pruned(traced)
        known_here = len(jax.tree.leaves(self.first_server)) + 2
        if any(used[known_here:]):
            raise ValueError(
                f"{self.algorithm.name}'s uploads refer to what the client keeps, so "
                "they cannot be compressed or clipped here: choose a wire as it is"
            )
        run = jaxpr_as_fun(pruned)

        def reference(server: Server, key: Array, number: Array) -> Any:
            given = zip((*jax.tree.leaves(server), key, number), used, strict=False)
            values = run(*(x for x, is_used in given if is_used))
            return jax.tree.unflatten(jax.tree.structure(shape), values)

        return reference

    def _traced(self, place: int, part: Callable[[Trained], Any]) -> tuple[Any, Any]:
        """The program and the shapes of a part of a client's round."""
        turn = self.turn(place)
        train = client_round(turn, self.wire)

        def run(
            server: Server,
            key: Array,
            number: Array,
            shared: Shared,
            state: Any,
            examples: Ragged,
        ) -> Any:
            received = turn.broadcast(server, state)
            shared = known(turn, shared, server, number)
            upload = jax.eval_shape(turn.client, shared, received, state, examples, key)
            zeros = lambda x: jnp.zeros(x.shape, x.dtype)
            owed = jax.tree.map(zeros, upload.upload)
            return part(train(shared, received, state, owed, examples, key))

        args = self.first_server, self.key, jnp.int32(0), self.shapes, *self._one()
        return jax.make_jaxpr(run, return_shape=True)(*args)

    def _one(self) -> tuple[Any, Ragged]:
        """One client's state and examples, as shapes."""
        begin, number = self.algorithm.init_client, jnp.int32(0)
        state = jax.eval_shape(begin, self.adapter, number, self.key)
        return state, Ragged(jnp.zeros(1, jnp.int32), jnp.ones((), jnp.int32))


def _pruned(traced: Any) -> tuple[Any, list[bool]]:
    """A program without what its results do not need, and which inputs they do."""
    jaxpr, used = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return traced.replace(jaxpr=jaxpr), used
