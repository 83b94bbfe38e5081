"""Rounds of any algorithm: one jitted program a round, and one iterator over rounds.

Dimension letters: `C` all clients, `c` the cohort, `N` examples of the largest client.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
from jax.sharding import Mesh

from potara_jax.clients.axis import AT_ONCE, Layout
from potara_jax.clients.fitting import jit_over_clients
from potara_jax.clients.mesh import by_client, everywhere, put, replicated
from potara_jax.data.federation import Ragged
from potara_jax.federated import conditions as conditions_
from potara_jax.federated import wire as wire_
from potara_jax.federated.cohort_round import Members, Report, make_cohort_round
from potara_jax.federated.conditions import EVERYBODY, Conditions
from potara_jax.federated.interface import Algorithm, Shared
from potara_jax.federated.progress import Progress, replaced
from potara_jax.federated.streaming import (
    HostProgress,
    host_program,
    select_on_host,
    stream,
)
from potara_jax.federated.wire import AS_IT_IS, Wire

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Round:
    """A round of an algorithm under some conditions, compiled once for every turn.

    Called as `round(shared, progress, examples, key, number) -> (progress, report)`.

    Attributes:
      algorithm: of the rounds.
      conditions: who takes part.
      wire: compression and privacy.
      layout: see `Layout`.
      programs: jitted, one a turn, with all clients' states on the device.
      host_programs: jitted, one a turn, with the cohort's states alone.
    """

    algorithm: Algorithm
    conditions: Conditions
    wire: Wire
    layout: Layout
    programs: tuple[Callable[..., Any], ...]
    host_programs: tuple[Callable[..., Any], ...]

    def __call__(
        self,
        shared: Shared,
        progress: Progress,
        examples: Ragged,
        key: Array,
        number: int | Array,
    ) -> tuple[Progress, Report]:
        """Run one round; `progress` is donated."""
        program = self.programs[int(number) % len(self.programs)]
        args = _placed(self.layout.mesh, shared, progress, examples, key)
        return program(*args, np.int32(number))


class Step(NamedTuple):
    """A round that is done: its number from 0, the state after it, and its report.

    The report is on the host.
    """

    number: int
    progress: Progress | HostProgress
    report: Report


def make_round(
    algorithm: Algorithm,
    *,
    conditions: Conditions = EVERYBODY,
    wire: Wire = AS_IT_IS,
    layout: Layout = AT_ONCE,
) -> Round:
    """A round of an algorithm, to call or to `iterate`.

    A cohort, drawn from the key and the round's number alone, trains from what it
    receives. A client's randomness depends on the key, its number and the round's.
    Uploads are weighted by the clients' numbers of examples, over their chances to be
    drawn where these are by examples too; equally under privacy. A client whose update
    or new state is not finite is left out, as is one that drops out: its weight is zero
    (under privacy its change is) and it keeps its state.

    Over a mesh, the clients' states stay split over its devices if their number can be
    split, and the server's state and the report are the same on all of them.

    Args:
      algorithm: of the rounds.
      conditions: who takes part.
      wire: compression and privacy.
      layout: see `Layout`.

    Raises:
      ValueError: a condition is out of its range, or the wire makes no sense for the
        algorithm.
    """
    conditions_.check(conditions)
    wire_.check(wire, algorithm)
    places = range(len(algorithm.turns) or 1)
    program = partial(_program, algorithm, conditions, wire, layout)
    host = partial(host_program, conditions=conditions, wire=wire, layout=layout)
    return Round(
        algorithm,
        conditions,
        wire,
        layout,
        tuple(program(place) for place in places),
        tuple(host(algorithm, place) for place in places),
    )


def iterate(
    round_: Round,
    shared: Shared,
    examples: Ragged,
    progress: Progress | HostProgress,
    key: Array,
    *,
    first: int = 0,
    last: int,
) -> Iterator[Step]:
    """Rounds `first` to `last - 1`, one after the other.

    Where the clients' states are is up to `progress`, which changes no result: on the
    device (`Progress`, by `start`), or on the host (`HostProgress`, by
    `start_on_host`). On the device, `progress` is donated, and a step's is valid until
    the next step is asked for. On the host, the next round is computed while the caller
    looks at a step, whose rows are put into `states` when the next one is asked for.

    Args:
      round_: by `make_round`.
      shared: base and pool. If the pool is NumPy arrays and the clients' states are on
        the host, only the cohort's examples are put on the device.
      examples: all clients', `[C, N]`.
      progress: after round `first - 1`; to go on from a step, that step's.
      key: of all rounds; not consumed, as every round folds its number in.
      first: the first round's number.
      last: the number after the last round's.
    """
    if isinstance(progress, HostProgress):
        steps = stream(
            round_.host_programs,
            shared,
            examples,
            progress,
            key,
            conditions=round_.conditions,
            layout=round_.layout,
            first=first,
            last=last,
        )
        yield from (Step(*step) for step in steps)
        return
    for number in range(first, last):
        progress, report = round_(shared, progress, examples, key, number)
        yield Step(number, progress, jax.device_get(report))


def progress_of(
    algorithm: Algorithm,
    progress: Progress | HostProgress,
    clients: np.ndarray | None = None,
) -> Progress:
    """The progress of some clients `[c]`, on the device; default: of all."""
    if isinstance(progress, HostProgress):
        everybody = np.arange(progress.states.clients)
        chosen = everybody if clients is None else clients
        return select_on_host(algorithm, progress, chosen)
    if clients is None:
        return progress
    states, owed = jax.tree.map(lambda x: x[clients], progress[1:])
    return Progress(progress.server, states, owed)


# --- Checkpoints ---------------------------------------------------------------------


def checkpoint(progress: Progress | HostProgress) -> Any:
    """What a checkpoint of a step must hold: a pytree of fixed shapes.

    With states on the host it is the server's state and the cohort's rows.
    """
    if isinstance(progress, HostProgress):
        return progress.server, progress.cohort, progress.rows
    return progress


def resume(progress: Progress | HostProgress, kept: Any) -> Progress | HostProgress:
    """The progress that `checkpoint` kept; `progress` is of the same federation."""
    if not isinstance(progress, HostProgress):
        return kept
    server, cohort, rows = jax.device_get(kept)
    return progress._replace(server=server, cohort=cohort, rows=rows)


def resumable(progress: Progress | HostProgress, rounds: int) -> bool:
    """Whether the rounds can go on from a checkpoint after so many of them.

    Not if the states on the host went further, or were lost.

    Args:
      progress: from the checkpoint.
      rounds: the number of rounds that it has done.
    """
    if not isinstance(progress, HostProgress):
        return True
    return progress.states.rounds in (rounds - 1, rounds)


# --- All clients' states on the device -----------------------------------------------


def _program(
    algorithm: Algorithm,
    conditions: Conditions,
    wire: Wire,
    layout: Layout,
    place: int,
) -> Callable[..., tuple[Progress, Report]]:
    """The jitted round of a turn."""
    make = partial(_make_program, algorithm, conditions, wire, place)
    clients = lambda shared, progress, examples, *_: len(examples.count)
    return jit_over_clients(make, layout, clients, donate_argnums=1)


def _make_program(
    algorithm: Algorithm,
    conditions: Conditions,
    wire: Wire,
    place: int,
    layout: Layout,
) -> Callable[..., tuple[Progress, Report]]:
    """A round of all clients' states: the cohort's are taken out and put back."""
    turn = algorithm.turn(place)
    run = make_cohort_round(turn, conditions=conditions, wire=wire, layout=layout)

    def program(
        shared: Shared, progress: Progress, examples: Ragged, key: Array, number: Array
    ) -> tuple[Progress, Report]:
        clients = examples.count.shape[0]
        chex.assert_tree_shape_prefix(progress.states, (clients,))
        cohort = conditions_.draw_cohort(conditions, examples.count, key, number)
        everybody = len(cohort.client) == clients
        at = _at(cohort.client)
        pick = lambda tree: tree if everybody else jax.tree.map(at, tree)
        owed = progress.owed[place] if progress.owed else ()
        members = Members(*cohort, *map(pick, (examples, progress.states, owed)))
        server, members, report = run(shared, progress.server, members, key, number)
        back = lambda old, new: new if everybody else _put(old, cohort.client, new)
        owed = replaced(progress.owed, place, back(owed, members.owed))
        progress = Progress(server, back(progress.states, members.states), owed)
        return _pinned(layout.mesh, clients, progress, report)

    return program


def _at(cohort: Array) -> Callable[[Array], Array]:
    return lambda x: x[cohort]


def _put(old: Any, cohort: Array, new: Any) -> Any:
    return jax.tree.map(lambda all_, rows: all_.at[cohort].set(rows), old, new)


def _pinned(
    mesh: Mesh | None, clients: int, progress: Progress, report: Report
) -> tuple[Progress, Report]:
    """Where everything stays on a mesh: without it, states would lose their split."""
    if mesh is None:
        return progress, report
    everywhere_, split = replicated(mesh), by_client(mesh, clients)
    stay = jax.lax.with_sharding_constraint
    server, rest = stay(progress.server, everywhere_), stay(progress[1:], split)
    return Progress(server, *rest), stay(report, everywhere_)


def _placed(
    mesh: Mesh | None, shared: Shared, progress: Progress, examples: Ragged, key: Array
) -> tuple[Shared, Progress, Ragged, Array]:
    """Everything where it stays on a mesh; what lies there already is left alone."""
    if mesh is None:
        return shared, progress, examples, key
    split = by_client(mesh, len(examples.count))
    rest, examples = put((progress[1:], examples), split)
    shared, server, key = everywhere(mesh, (shared, progress.server, key))
    return shared, Progress(server, *rest), examples, key
