"""Rounds of a federation whose clients' states do not fit the device.

The states are in `ClientStates`; the examples and, if need be, the pool are on the
host. Only a cohort's are on the device, and the next cohort's travel there while a
round is computed. The results are those of states on the device, to the bit.

Dimension letters: `C` all clients, `c` the cohort, `N` examples of the largest client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from potara_jax.adapters.lora import Adapter, Params
from potara_jax.clients.axis import Layout
from potara_jax.clients.fitting import jit_over_clients
from potara_jax.clients.mesh import by_client, everywhere, put, replicated
from potara_jax.clients.states import ClientStates
from potara_jax.data.federation import Batch, Ragged
from potara_jax.federated import conditions as conditions_
from potara_jax.federated.cohort_round import Members, Report, make_cohort_round
from potara_jax.federated.conditions import EVERYBODY, Cohort, Conditions
from potara_jax.federated.interface import Algorithm, Server, Shared
from potara_jax.federated.progress import (
    Progress,
    first_states,
    is_on_host,
    part_of,
    replaced,
    with_feedback,
)
from potara_jax.federated.wire import AS_IT_IS, Wire

Array = jax.Array
AnyArray = Any  # of NumPy on the host, of JAX on the device
Program = Callable[..., tuple[Server, "Rows", Report]]


class Rows(NamedTuple):
    """What clients keep: their states, and what they owe in each of the turns."""

    state: Any
    owed: tuple[Any, ...]


class HostProgress(NamedTuple):
    """`Progress` with the clients' states on the host.

    Attributes:
      server: the server's state.
      states: all clients' `Rows`; a client that has not begun starts from `adapter` and
        `key`.
      adapter: what a client starts from.
      key: of all rounds.
      cohort: the clients of the last round, `[c]`; -1 before the first.
      rows: what these keep since, `[c, ...]`, which is not in `states` yet; zeros
        before the first round.
    """

    server: Server
    states: ClientStates
    adapter: Adapter
    key: Array
    cohort: np.ndarray
    rows: Rows


def start_on_host(
    algorithm: Algorithm,
    shared: Shared,
    adapter: Adapter,
    examples: Ragged,
    key: Array,
    *,
    conditions: Conditions = EVERYBODY,
    wire: Wire = AS_IT_IS,
    folder: Path | None = None,
) -> HostProgress:
    """The state before the first round, with the clients' states on the host.

    Args:
      algorithm: of the rounds.
      shared: base and pool.
      adapter: what the server and every client start from.
      examples: all clients', `[C, N]`.
      key: of all rounds; not consumed.
      conditions: of the rounds.
      wire: of the rounds.
      folder: where the states are kept in files; default: in memory.

    Raises:
      ValueError: the folder holds the states of another federation, or all clients are
        newcomers.
    """
    clients = len(examples.count)
    size = conditions_.size(conditions, clients)
    server = algorithm.init(adapter, size)

    def first_rows(examples: Ragged) -> Rows:
        states = _first_states(algorithm, adapter, jnp.arange(1), key)
        begun = Progress(server, states)
        owed = with_feedback(algorithm, wire, shared, begun, examples).owed
        return Rows(begun.states, owed)

    rows = jax.eval_shape(first_rows, jax.tree.map(lambda x: x[:1], examples))
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
    states = ClientStates(one, clients, folder)
    nobody = np.full(size.cohort, -1, np.int32)
    rows = states.take(0 * nobody)
    return HostProgress(server, states, adapter, key, nobody, rows)


def stream(
    programs: Sequence[Program],
    shared: Shared,
    examples: Ragged,
    progress: HostProgress,
    key: Array,
    *,
    conditions: Conditions,
    layout: Layout,
    first: int,
    last: int,
) -> Iterator[tuple[int, HostProgress, Report]]:
    """Rounds `first` to `last - 1` from `progress`, on the host: `rounds.iterate`.

    Args:
      programs: one for each of the algorithm's turns, by `host_program`.
      shared: base and pool.
      examples: all clients', `[C, N]`.
      progress: after round `first - 1`.
      key: of all rounds; not consumed.
      conditions: of the rounds.
      layout: see `Layout`.
      first: the first round's number.
      last: the number after the last round's.
    """
    mesh, examples = layout.mesh, jax.tree.map(np.asarray, examples)
    draw = _cohorts(conditions, examples, key)
    base = shared.base if mesh is None else everywhere(mesh, shared.base)
    _put_back(progress, first)
    running = None
    for number in range(first, last):
        cohort = draw(number)
        clients: AnyArray = cohort.client
        sent = _sent(mesh, shared.pool, examples, progress, cohort)
        program = programs[number % len(programs)]
        kept = progress.adapter, progress.server
        server, rows, report = program(base, *kept, sent, key, number)
        if running:
            yield from _landed(*running)
        progress = progress._replace(server=server, cohort=clients, rows=rows)
        running = number, progress, report
    if running:
        yield from _landed(*running)
    progress.states.flush()


def _landed(
    number: int, progress: HostProgress, report: Report
) -> Iterator[tuple[int, HostProgress, Report]]:
    """A round on the host; its rows are put back once the caller has seen it."""
    server, rows, report = jax.device_get((progress.server, progress.rows, report))
    progress = progress._replace(server=server, rows=rows)
    yield number, progress, report
    _put_back(progress, number + 1)


def _put_back(progress: HostProgress, rounds: int) -> None:
    if progress.cohort[0] >= 0:
        progress.states.put(progress.cohort, progress.rows, rounds=rounds)


def select_on_host(
    algorithm: Algorithm, progress: HostProgress, clients: np.ndarray
) -> Progress:
    """Some clients' states `[c, ...]`, on the device."""
    kept = _kept(progress, clients)
    kept = jax.tree.map(jnp.asarray, kept)
    rows = _newest(algorithm, progress.adapter, kept, progress.key)
    return Progress(progress.server, rows.state, rows.owed)


# --- On the host ---------------------------------------------------------------------


class _Kept(NamedTuple):
    """What some clients keep, wherever that is.

    For each client: its number; its row in the states, where it has `begun`; and its
    place in the last round's cohort, whose rows are `latest`, or -1.
    """

    client: AnyArray
    rows: Rows
    begun: AnyArray
    place: AnyArray
    latest: Any


class _Sent(NamedTuple):
    """What goes to the device for a round; `pool` may be the cohort's part of it."""

    kept: _Kept
    weight: AnyArray
    examples: Ragged
    pool: Batch


def _cohorts(
    conditions: Conditions, examples: Ragged, key: Array
) -> Callable[[int], Cohort]:
    """A function from a round to its cohort, computed beside the accelerator."""
    host = jax.local_devices(backend="cpu")[0]
    counts, key = jax.device_put((examples.count, key), host)
    draw = jax.jit(lambda n: conditions_.draw_cohort(conditions, counts, key, n))

    def cohort(number: int) -> Cohort:
        with jax.default_device(host):
            return jax.tree.map(np.asarray, draw(np.int32(number)))

    return cohort


def _sent(
    mesh: Mesh | None,
    pool: Batch,
    examples: Ragged,
    progress: HostProgress,
    cohort: Cohort,
) -> _Sent:
    clients: Any = cohort.client
    examples = jax.tree.map(lambda x: x[clients], examples)
    if is_on_host(pool):
        pool, examples = part_of(pool, examples)
    kept = _kept(progress, clients)
    return _put(mesh, _Sent(kept, cohort.weight, examples, pool))


def _kept(progress: HostProgress, clients: np.ndarray) -> _Kept:
    states = progress.states
    place = _places(clients, progress.cohort)
    return _Kept(
        clients, states.take(clients), states.begun[clients], place, progress.rows
    )


def _put(mesh: Mesh | None, sent: _Sent) -> _Sent:
    """Arrays on their way to the device, or the devices."""
    if mesh is None:
        return jax.device_put(sent)
    split = by_client(mesh, len(sent.kept.client))
    kept = put(sent.kept._replace(latest=()), split)
    kept = kept._replace(latest=everywhere(mesh, sent.kept.latest))
    weight, examples = put((sent.weight, sent.examples), split)
    return _Sent(kept, weight, examples, everywhere(mesh, sent.pool))


def _places(clients: np.ndarray, cohort: np.ndarray) -> np.ndarray:
    """Each client's place in a sorted cohort; -1 if it is not in it."""
    place = np.searchsorted(cohort, clients).clip(max=len(cohort) - 1)
    return np.where(cohort[place] == clients, place, -1).astype(np.int32)


# --- On the device -------------------------------------------------------------------


def host_program(
    algorithm: Algorithm,
    place: int,
    *,
    conditions: Conditions,
    wire: Wire,
    layout: Layout,
) -> Program:
    """The jitted round of a turn, which is at a `place` among an algorithm's turns."""
    make = partial(_make_program, algorithm, place, conditions, wire)
    clients = lambda base, adapter, server, sent, *_: len(sent.kept.client)
    program, mesh = jit_over_clients(make, layout, clients), layout.mesh

    def placed(
        base: Params, adapter: Adapter, server: Server, sent: _Sent, key: Array, n: int
    ) -> tuple[Server, Rows, Report]:
        if mesh is not None:
            adapter, server, key = everywhere(mesh, (adapter, server, key))
        return program(base, adapter, server, sent, key, np.int32(n))

    return placed


def _make_program(
    algorithm: Algorithm,
    place: int,
    conditions: Conditions,
    wire: Wire,
    layout: Layout,
) -> Program:
    turn = algorithm.turn(place)
    run = make_cohort_round(turn, conditions=conditions, wire=wire, layout=layout)

    def program(
        base: Params,
        adapter: Adapter,
        server: Server,
        sent: _Sent,
        key: Array,
        number: Array,
    ) -> tuple[Server, Rows, Report]:
        rows = _newest(algorithm, adapter, sent.kept, key)
        owed = rows.owed[place] if rows.owed else ()
        clients = sent.kept.client, sent.weight, sent.examples
        members = Members(*clients, rows.state, owed)
        shared = Shared(base, sent.pool)
        server, members, report = run(shared, server, members, key, number)
        owed = replaced(rows.owed, place, members.owed)
        return _pinned(layout.mesh, (server, Rows(members.states, owed), report))

    return program


def _pinned(mesh: Mesh | None, result: Any) -> Any:
    """On all devices: every host keeps all clients' rows."""
    if mesh is None:
        return result
    return jax.lax.with_sharding_constraint(result, replicated(mesh))


def _newest(algorithm: Algorithm, adapter: Adapter, kept: _Kept, key: Array) -> Rows:
    """Every client's row, from where it is newest."""
    states = _first_states(algorithm, adapter, kept.client, key)
    begin = Rows(states, jax.tree.map(jnp.zeros_like, kept.rows.owed))

    def newest(begin: Array, row: Array, latest: Array) -> Array:
        wide = lambda mask: mask.reshape(-1, *[1] * (begin.ndim - 1))
        row = jnp.where(wide(kept.begun), row, begin)
        return jnp.where(wide(kept.place >= 0), latest[kept.place], row)

    return jax.tree.map(newest, begin, kept.rows, kept.latest)


def _first_states(
    algorithm: Algorithm, adapter: Adapter, clients: Array, key: Array
) -> Any:
    alike = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (len(clients), *x.shape)), adapter
    )
    return first_states(algorithm, alike, clients, key)
