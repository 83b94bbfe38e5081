"""One cell: the phases, the merges, every method's score, and the diagnostics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import jax

from potara_jax.adapters.lora import Adapter
from potara_jax.experiment.context import Context, Parents
from potara_jax.experiment.diagnostics import diagnostics
from potara_jax.experiment.merges import make_merges
from potara_jax.experiment.methods import make_methods, row
from potara_jax.experiment.phases import Outcome, Phase, run_phase, until
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.programs import Programs
from potara_jax.experiment.recipes import KEPT
from potara_jax.experiment.settings import Settings
from potara_jax.experiment.writing import written
from potara_jax.federated.rounds import stack, start
from potara_jax.runs.progress import Display
from potara_jax.runs.store import Cell, Store


def run_cell(
    cell: Cell,
    settings: Settings,
    programs: Programs,
    problem: Problem,
    *,
    store: Store,
    display: Display,
) -> dict:
    """Run a cell, or what is left of it; its record.

    Which is `{"methods", "diagnostics", "written"}`.
    """
    key = jax.random.key(cell.seed)
    federation = problem.federations[cell]
    at = Context(settings, programs, problem, federation, cell, key)
    parents, longer = _train(at, store, display)
    seconds = {
        "federated": parents.federated.seconds,
        "local": parents.local.seconds,
        "fine-tuning": parents.fine_tuned.seconds,
    }
    display.note(f"{cell.name}: all weights")
    with _timed(seconds, "merge"):
        merges = jax.block_until_ready(make_merges(at, parents, display))
    display.note(f"{cell.name}: all merges, scores and answers")
    with _timed(seconds, "evaluation"):
        methods = make_methods(at, parents, merges, display, longer)
        record = {
            "methods": [row(at, method) for method in methods],
            "diagnostics": diagnostics(at, parents, merges, methods),
            "written": written(at, methods),
        }
    record["diagnostics"]["seconds"] = seconds
    for method in methods:
        if method.name in KEPT:
            store.keep_adapters(cell, method.name, method.adapters)
    return record


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[name] = time.monotonic() - began


def _train(at: Context, store, display) -> tuple[Parents, Outcome]:
    """The three phases, and the federated one to its last round."""
    longer, local = train_parents(at, store, display)
    federated = until(longer, at.settings.federated_rounds)
    tuning, begin = at.programs.fine_tuning, federated.models
    tuned = train(at, store, display, tuning, begin, at.fold(3))
    return Parents(federated, local, tuned), longer


def train_parents(
    at: Context, store: Store, display: Display
) -> tuple[Outcome, Outcome]:
    """The federated phase, which may go on after the model to merge; the local one."""
    run, first = partial(train, at, store, display), at.problem.adapter(at.fold(0))
    alike = stack(first, clients=at.settings.clients)
    federated = run(at.programs.federated, alike, at.fold(1))
    merged = until(federated, at.settings.federated_rounds)
    begin = _local_start(at, first, merged.models)
    return federated, run(at.programs.local, begin, at.fold(2))


def train(at: Context, store, display, phase: Phase, adapters, key) -> Outcome:
    """A phase from every client's adapter; the server starts from the first one's."""
    return run_phase(
        phase,
        start(phase.algorithm, adapters, phase.conditions),
        at.problem.base,
        at.federation,
        key,
        cell=at.cell,
        store=store,
        display=display,
    )


def _local_start(at: Context, first, federated) -> Adapter:
    clients, how = at.settings.clients, at.settings.local_start
    if how == "federated":
        return federated
    if how == "independent":
        return jax.vmap(at.problem.adapter)(jax.random.split(at.fold(5), clients))
    return stack(first, clients=clients)
