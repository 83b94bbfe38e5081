"""Rounds of a federation whose clients' states do not fit the device.

States lie in `ClientStates`, examples and, if need be, the pool on the host. Only a
cohort's are on the device, and the next cohort's travel there while a round is
computed. A round gives what `rounds.make_round` gives, to the bit.

Dimension letters: `C` all clients, `c` the cohort, `N` examples of the largest client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters.lora import Adapter, Params
from potara_jax.clients.axis import AT_ONCE, Layout
from potara_jax.clients.fitting import jit_over_clients
from potara_jax.clients.mesh import by_client, everywhere, put, replicated
from potara_jax.clients.states import ClientStates
from potara_jax.data.federation import Batch, Ragged, take
from potara_jax.federated import conditions as conditions_
from potara_jax.federated import rounds
from potara_jax.federated.conditions import EVERYBODY, Conditions
from potara_jax.federated.interface import Algorithm, Shared
from potara_jax.federated.rounds import Members, Progress, Report
from potara_jax.federated.wire import AS_IT_IS, Wire

Array = jax.Array
Server = Any


class Rows(NamedTuple):
    """What a client keeps: its state, and what it owes in each of the turns."""

    state: Any
    owed: tuple


class Round(NamedTuple):
    """A round's result, on the host: `rows` `[c, ...]` of the report's cohort."""

    number: int
    server: Server
    rows: Rows
    report: Report


class Streaming(NamedTuple):
    """A federation to be streamed.

    adapter: what every client starts from. examples: all clients', as NumPy arrays.
    pool: on the device; or as NumPy arrays on the host, whence a cohort's is gathered.
    """

    algorithm: Algorithm
    base: Params
    adapter: Adapter
    pool: Batch
    examples: Ragged
    conditions: Conditions = EVERYBODY
    wire: Wire = AS_IT_IS
    layout: Layout = AT_ONCE

    @property
    def clients(self) -> int:
        """The number of all clients."""
        return len(self.examples.count)


def start(given: Streaming) -> Server:
    """The server's state before the first round."""
    size = conditions_.size(given.conditions, given.clients)
    return given.algorithm.init(given.adapter, size)


def states_of(given: Streaming, **where) -> ClientStates:
    """Room for all clients' rows; `where` is as `ClientStates` has it."""
    first = jax.tree.map(lambda x: x[:1], given.examples)
    rows = jax.eval_shape(lambda: _first_rows(given, jnp.arange(1), first))
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
    return ClientStates(one, given.clients, **where)


def stream(
    given: Streaming,
    states: ClientStates,
    key: Array,
    *,
    last: int,
    first: int = 0,
    server: Server = None,
) -> Iterator[Round]:
    """Rounds `first` to `last - 1`, one after the other.

    While a round is looked at, the next one is computed; a round's rows are put into
    `states` when the one after it is asked for. So whoever keeps a round's server and
    rows can go on after it: `states` with those rows in it, and that server.

    server: the server's state before `first`; default: `start`'s. Raises `ValueError`
    where a condition is out of range.
    """
    programs, draw = _programs(given), _cohorts(given, key)
    server, before = start(given) if server is None else server, None
    for number in range(first, last):
        sent = _sent(given, states, draw(number), before)
        program = programs[number % len(programs)]
        server, rows, report = program(server, sent, key, np.int32(number))
        if before:
            yield from _landed(before, states)
        before = Round(number, server, rows, report)
    if before:
        yield from _landed(before, states)


def _landed(before: Round, states: ClientStates) -> Iterator[Round]:
    here = before._replace(
        **jax.device_get({n: getattr(before, n) for n in ("server", "rows", "report")})
    )
    yield here
    states.put(here.report.cohort, here.rows)


def models(
    given: Streaming, states: ClientStates, after: Round, clients: np.ndarray
) -> tuple[Shared, Any]:
    """What these clients know and the models that they have after a round, `[c, ...]`.

    After the round that `stream` gave last.
    """
    rows = _rows_after(given, states, after, clients)
    shared = Shared(given.base, given.pool)
    progress, number = Progress(after.server, rows.state), after.number + 1
    how = {"clients": len(clients), "number": number}
    found = rounds.personalised(given.algorithm, shared, progress, **how)
    turn = given.algorithm.turn(number)
    return rounds.known(turn, shared, after.server, number), found


def _rows_after(given, states, after: Round, clients: np.ndarray) -> Rows:
    examples = jax.tree.map(lambda x: np.asarray(x)[clients], given.examples)
    place = _places(clients, np.asarray(after.report.cohort))
    own = clients, examples, states.take(clients), states.begun[clients]
    sent = _Sent(*own[:2], (), *own[2:], after.rows, place)
    return _rows(given, jax.tree.map(jnp.asarray, sent))


# --- On the host ---------------------------------------------------------------------


class _Sent(NamedTuple):
    """What goes to the device for a round.

    rows: as they are in the states, where clients have `begun`; but `before[place]`
    where `place` is not negative: those of clients that the round before had too.
    pool: the cohort's, and `examples` into it, where the whole one is on the host.
    """

    client: Array
    examples: Ragged
    pool: Batch
    rows: Rows
    begun: Array
    before: Rows
    place: Array


def _cohorts(given: Streaming, key: Array) -> Callable[[int], np.ndarray]:
    """A function from a round to its cohort, computed beside the accelerator."""
    host = jax.local_devices(backend="cpu")[0]
    counts, key = jax.device_put((np.asarray(given.examples.count), key), host)
    draw = jax.jit(lambda n: conditions_.draw_cohort(given.conditions, counts, key, n))

    def cohort(number: int) -> np.ndarray:
        with jax.default_device(host):
            return np.asarray(draw(np.int32(number)))

    return cohort


def _sent(given: Streaming, states: ClientStates, cohort, before: Round | None):
    examples = jax.tree.map(lambda x: np.asarray(x)[cohort], given.examples)
    pool = given.pool
    if isinstance(pool.labels, np.ndarray):
        pool, examples = _own_pool(pool, examples)
    own = cohort, examples, states.take(cohort), states.begun[cohort]
    if before is None:
        earlier, place = own[2], np.full(len(cohort), -1, np.int32)
    else:
        earlier, place = before.rows, _places(cohort, np.asarray(before.report.cohort))
    own, pool, earlier, place = _put(given.layout.mesh, own, pool, earlier, place)
    return _Sent(*own[:2], pool, *own[2:], earlier, place)


def _put(mesh, own, pool, earlier, place):
    """Arrays on their way to the device, or the devices."""
    if mesh is None:
        return jax.device_put((own, pool, earlier, place))
    own, place = put((own, place), by_client(mesh, len(place)))
    return own, *everywhere(mesh, (pool, earlier)), place


def _own_pool(pool: Batch, examples: Ragged) -> tuple[Batch, Ragged]:
    """The cohort's part of a pool, and its examples as indices into that."""
    clients, size = examples.index.shape
    own = take(pool, examples.index.ravel())
    index = np.arange(clients * size, dtype=np.int32).reshape(clients, size)
    return own, examples._replace(index=index)


def _places(cohort: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Where each client was in the cohort before; -1 where it was not."""
    place = np.searchsorted(before, cohort).clip(max=len(before) - 1)
    return np.where(before[place] == cohort, place, -1).astype(np.int32)


# --- On the device -------------------------------------------------------------------


def _programs(given: Streaming) -> list[Callable]:
    turns = given.algorithm.turns or (given.algorithm,)
    return [_program(given, turn, place) for place, turn in enumerate(turns)]


def _program(given: Streaming, turn: Algorithm, place: int) -> Callable:
    """`program(server, sent, key, number) -> (server, rows, report)`, jitted."""
    mesh = given.layout.mesh
    base = given.base if mesh is None else everywhere(mesh, given.base)
    program = jit_over_clients(
        partial(_make_program, given, turn, place),
        given.layout,
        lambda base, server, sent, *_: len(sent.client),
    )

    def placed(server, sent, key, number):
        if mesh is not None:
            server, key = everywhere(mesh, (server, key))
        return program(base, server, sent, key, number)

    return placed


def _make_program(given: Streaming, turn: Algorithm, place: int, layout: Layout):
    how = {"conditions": given.conditions, "wire": given.wire, "layout": layout}
    run = rounds.make_turn(turn, **how)

    def program(base, server, sent: _Sent, key, number):
        rows = _rows(given, sent)
        owed = rows.owed[place] if rows.owed else ()
        members = Members(sent.client, sent.examples, rows.state, owed)
        shared = Shared(base, sent.pool)
        server, members, report = run(shared, server, members, key, number)
        owed = rounds.replaced(rows.owed, place, members.owed)
        return _pinned(layout.mesh, (server, Rows(members.states, owed), report))

    return program


def _pinned(mesh, result):
    """On all devices: every host keeps all clients' rows."""
    if mesh is None:
        return result
    return jax.lax.with_sharding_constraint(result, replicated(mesh))


def _rows(given: Streaming, sent: _Sent) -> Rows:
    """Every member's rows, from where they are newest."""
    first = _first_rows(given, sent.client, sent.examples)

    def newest(first, kept, before):
        wide = lambda mask: mask.reshape(-1, *[1] * (first.ndim - 1))
        kept = jnp.where(wide(sent.begun), kept, first)
        return jnp.where(wide(sent.place >= 0), before[sent.place], kept)

    return jax.tree.map(newest, first, sent.rows, sent.before)


def _first_rows(given: Streaming, clients, examples: Ragged) -> Rows:
    begin = lambda client: given.algorithm.init_client(given.adapter, client)
    states = jax.vmap(begin)(clients)
    progress = Progress(start(given), states)
    owing = given.wire, Shared(given.base, given.pool), progress, examples
    return Rows(states, rounds.owing(given.algorithm, *owing).owed)
