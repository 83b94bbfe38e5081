"""A federation of many clients, of which a small cohort is on the device at a time.

    potara simulate digits --clients 10000 --cohort 200

Clients' states lie in files in the run folder, mapped into memory, and take space once
a client has been in a cohort. The next cohort travels while a round is computed. Along
the way the models of some of the clients are scored.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from potara_jax.clients.states import ClientStates
from potara_jax.evaluation.metrics import evaluator, worst_decile
from potara_jax.experiment import federating, tuning
from potara_jax.experiment.phases import name_left_out, record_of
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.programs import marks_of
from potara_jax.experiments.digits import Digits
from potara_jax.federated import streaming
from potara_jax.federated.conditions import size
from potara_jax.federated.streaming import Round, Rows, Streaming
from potara_jax.runs import checkpoints, files
from potara_jax.runs.checkpoints import Saved

NAME, SPEED = "simulation", "speed.jsonl"
MARKS, SCORES = 6, ("mean", "worst_decile")
STATM = Path("/proc/self/statm")


@dataclasses.dataclass(frozen=True)
class SimulateDigits(Digits):
    """Many clients on the digits, whose states are not on the device."""

    out: Path = Path("runs/simulate-digits")
    """Run folder. A finished simulation is shown again, an unfinished one continued."""
    seeds: tuple[int, ...] = (0,)
    """Every seed draws the splits, the clients, the initial factors and the batches."""
    heterogeneity: tuple[str, ...] = ("0.1",)
    """Dirichlet concentrations of the clients' classes."""
    clients: int = 10_000
    """Number of clients."""
    cohort: str = "200"
    """Clients of a round: their share, as 0.5 or 1.0, or their number."""
    examples: int | None = 40
    """Training images of a client, in the median; two clients may hold the same."""
    federated_rounds: int = 50
    """Rounds of the algorithm that --federated names."""
    scored: int = 500
    """Clients whose models are scored, evenly spread over all."""

    def check(self) -> None:
        """As every experiment's, and the number of scored clients."""
        super().check()
        if self.scored < 1:
            raise ValueError(f"--scored is {self.scored}: it must be above 0")


class _State(NamedTuple):
    """What a round leaves: the server's state, and the rows of its cohort."""

    server: Any
    rows: Rows
    cohort: np.ndarray


class Programs(NamedTuple):
    """The algorithm; how a cell's federation is streamed; how models are scored.

    `score(shared, models, test)`.
    """

    algorithm: Any
    streamed: Callable[[Any, Any], Streaming]
    score: Callable


def number_of_rounds(settings: SimulateDigits) -> int:
    """Rounds of a cell."""
    return settings.federated_rounds


def make_programs(settings: SimulateDigits, problem: Problem) -> Programs:
    """All programs of a simulation."""
    algorithm = tuning.make(settings, problem.task, settings.federated)

    def streamed(federation, adapter) -> Streaming:
        return Streaming(
            algorithm,
            problem.base,
            adapter,
            federation.pool,
            jax.tree.map(np.asarray, federation.train),
            federating.conditions(settings),
            federating.the_wire(settings),
            federating.layout(settings),
        )

    task, how = algorithm.predict(problem.task), federating.measuring_layout(settings)
    return Programs(algorithm, streamed, evaluator(task, layout=how))


def run_cell(cell, settings, programs: Programs, problem, *, store, display) -> dict:
    """A simulation, or what is left of it: its record."""
    key, federation = jax.random.key(cell.seed), problem.federations[cell]
    given = programs.streamed(federation, problem.adapter(jax.random.fold_in(key, 0)))
    states, saved = _begin(cell, given, store)
    display.skip(saved.round)
    rounds = streaming.stream(
        given,
        states,
        jax.random.fold_in(key, 1),
        first=saved.round,
        last=settings.federated_rounds,
        server=saved.state.server,
    )
    began = time.monotonic()
    for result in store.traced(NAME, rounds):
        took = time.monotonic() - began
        record = record_of(cell, NAME, result.number, result.report, given.clients)
        if result.number + 1 in marks_of(settings.federated_rounds, MARKS):
            record |= _scores(given, states, result, settings, programs, federation)
        began, seconds = time.monotonic(), saved.seconds + took
        state = _State(result.server, result.rows, result.report.cohort)
        saved = Saved(result.number + 1, state, [*saved.history, record], seconds)
        store.end_round(cell, NAME, saved)
        if not _scored_after(saved.history[:-1]):
            note_speed(store.path / SPEED, record, took)
        display.round(f"{cell.name} {NAME}", record["loss"])
        name_left_out(saved.history, cell, store)
    states.flush()
    return _record(cell, settings, given, states, saved)


def _scored_after(history: list[dict]) -> bool:
    """Whether models were scored while the next round was already computed."""
    return bool(history) and "mean" in history[-1]


def _begin(cell, given: Streaming, store) -> tuple[ClientStates, Saved]:
    """All clients' states, and the last round: it is put into them once more.

    The round before that does not do: the states are further. So where the last one is
    damaged, the simulation starts over.
    """
    folder, kept = store.path / "states" / cell.name, store.phase(cell, NAME)
    last = checkpoints.last_round(kept)
    like = _State(streaming.start(given), *_nobody(given))
    saved = store.begin_phase(cell, NAME, like)
    if saved and saved.round == last:
        states = streaming.states_of(given, folder=folder)
        states.put(saved.state.cohort, jax.device_get(saved.state.rows))
        return states, saved
    if last:
        store.warn(f"{cell.name}: starting over, as the last round cannot be read")
    for path in (folder, kept):
        shutil.rmtree(path, ignore_errors=True)
    store.begin_phase(cell, NAME, like)
    return streaming.states_of(given, folder=folder), Saved(0, like, [], 0.0)


def _nobody(given: Streaming):
    """Rows and numbers of a cohort that are not those of any clients."""
    cohort = size(given.conditions, given.clients).cohort
    none = np.zeros(cohort, np.int32)
    return streaming.states_of(given).take(none), none


# --- What there is to see ------------------------------------------------------------


def _scores(given, states, result: Round, settings, programs, federation) -> dict:
    """The accuracy of some clients' models after a round."""
    spread = np.linspace(0, given.clients - 1, min(settings.scored, given.clients))
    clients = spread.astype(np.int32)
    shared, models = streaming.models(given, states, result, clients)
    test = jax.tree.map(lambda x: x[clients], federation.test)
    accuracy = np.asarray(programs.score(shared, models, test).accuracy, np.float64)
    return {"mean": float(accuracy.mean()), "worst_decile": worst_decile(accuracy)}


def _record(cell, settings, given: Streaming, states: ClientStates, saved: Saved):
    history = saved.history
    sent = np.cumsum([line["bytes_up"] + line["bytes_down"] for line in history])
    curve = [
        {"round": line["round"], "bytes": int(so_far)} | {k: line[k] for k in SCORES}
        for line, so_far in zip(history, sent, strict=True)
        if "mean" in line
    ]
    return {
        **cell._asdict(),
        "algorithm": given.algorithm.name,
        "clients": given.clients,
        "cohort": len(saved.state.cohort),
        "seen": int(states.begun.sum()),
        "state_bytes": states.nbytes,
        "steps": sum(line["steps"] for line in history),
        "seconds": saved.seconds,
        "curve": curve,
    }


def note_speed(path: Path, record: dict, took: float) -> None:
    """Append how fast a round was, and what memory the process has."""
    line = {name: record[name] for name in ("heterogeneity", "seed", "round", "steps")}
    line |= {"seconds": round(took, 4), "memory": memory()}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def memory() -> int:
    """Bytes of memory that this process has now; where that is not told, at most."""
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read_speed(folder: Path) -> list[dict]:
    """Lines of `note_speed`, the last of each round."""
    where = lambda line: (line["heterogeneity"], line["seed"], line["round"])
    found = {where(line): line for line in files.read_json_lines(folder / SPEED)}
    return [found[place] for place in sorted(found)]
