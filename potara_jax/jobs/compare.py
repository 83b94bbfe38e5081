"""Every federated algorithm and every merge on the same federations.

    potara compare digits                     (or: make compare)

All algorithms start from the same factors and draw the same cohorts and batches. They
run for as many rounds as Potara trains in all, and are scored along the way and where
they have spent what Potara has, so that each can be compared there: at its bytes, at
its local steps, or both. Learning rates and hyper-parameters were chosen for each
algorithm alike: see `experiments/tune.py`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from potara_jax.evaluation.metrics import evaluator
from potara_jax.experiment import federating, programs, tuning
from potara_jax.experiment.cell import train, train_parents
from potara_jax.experiment.context import Context, Parents
from potara_jax.experiment.diagnostics import diagnostics
from potara_jax.experiment.merges import make_merges
from potara_jax.experiment.methods import make_methods
from potara_jax.experiment.newcomers import joining_phase, welcome
from potara_jax.experiment.phases import Evaluate, Phase, until
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.settings import Settings, check_algorithms
from potara_jax.experiments.digits import Digits
from potara_jax.federated.algorithms.feddpa import instance_wise
from potara_jax.federated.registry import load_all
from potara_jax.federated.rounds import stack
from potara_jax.jobs import contenders
from potara_jax.jobs.contenders import Trained

MARKS = 6


@dataclasses.dataclass(frozen=True)
class CompareDigits(Digits):
    """Every federated algorithm and every merge on the digits."""

    out: Path = Path("runs/compare-digits")
    """Run folder. A finished comparison is shown again, an unfinished one continued."""
    federated_rounds: int = 30
    """Rounds of the federated model; all algorithms run as long as Potara in all."""
    local_rounds: int = 15
    """Rounds that each client trains alone: the local phase, and fine-tuning."""
    algorithms: tuple[str, ...] = ()
    """Algorithms to compare with the federated and the local model, by the names of the
    README (or of the error where one is wrong). Default: all."""

    def check(self) -> None:
        """As every experiment's, and the algorithms' names."""
        super().check()
        check_algorithms(self)


class Contender(NamedTuple):
    """An algorithm's phase, and how newcomers join it.

    personal: clients keep something of their own; mergeable: its model is an adapter.
    """

    phase: Phase
    joining: Phase | None
    personal: bool
    mergeable: bool


class Programs(NamedTuple):
    """What the merges need, and the phases beside; `doubled` are of rank 2r."""

    table: programs.Programs
    contenders: dict[str, Contender]
    doubled: tuple[Phase, Phase, Phase]
    evaluate_by_instance: Evaluate


def names(settings: CompareDigits) -> list[str]:
    """The algorithms to compare, without those that every comparison has."""
    chosen = settings.algorithms or tuple(load_all())
    return [name for name in chosen if name not in ("local", settings.federated)]


def last_round(settings: Settings) -> int:
    """As many rounds as Potara trains in all."""
    return settings.federated_rounds + settings.local_rounds


def number_of_rounds(settings: CompareDigits) -> int:
    """Rounds of a cell: the algorithms', both parents' and fine-tuning's, twice."""
    joining = settings.local_rounds if settings.newcomers else 0
    each = len(names(settings)) * (last_round(settings) + joining)
    return each + 4 * last_round(settings) + 2 * settings.local_rounds


def make_programs(settings: CompareDigits, problem: Problem) -> Programs:
    """All programs of a comparison."""
    _, local = programs.parents(settings, problem)
    federated = _phase(settings, problem, settings.federated)
    middle = programs.marks_of(settings.federated_rounds, 2)[:1]
    both = federated._replace(
        name="federated",
        marks=sorted({*federated.marks, *middle}),
        keep=(*middle, *federated.keep),
    )
    alone = _longer(settings, local)
    table = programs.merging_programs(settings, problem, both, local)
    how = federating.measuring_layout(settings)
    return Programs(
        table._replace(local=alone),
        {name: _contender(settings, problem, name) for name in names(settings)},
        _doubled(federated, alone, table.fine_tuning),
        evaluator(instance_wise(problem.task), layout=how),
    )


def _phase(settings, problem, name: str) -> Phase:
    algorithm = tuning.make(settings, problem.task, name)
    return federating.federated_phase(
        settings,
        problem,
        algorithm,
        name=name,
        last=last_round(settings),
        marks=programs.marks_of(last_round(settings), MARKS),
        keep=(settings.federated_rounds,),
    )


def _longer(settings, local: Phase) -> Phase:
    marks = programs.marks_of(last_round(settings), MARKS)
    kept = settings.local_rounds
    return local._replace(
        rounds=last_round(settings), marks=sorted({kept, *marks}), keep=(kept,)
    )


def _contender(settings, problem, name: str) -> Contender:
    phase = _phase(settings, problem, name)
    personal = federating.is_personal(phase.algorithm, problem)
    joining = joining_phase(settings, phase) if personal else None
    mergeable = federating.rank_of(phase.algorithm, problem) is not None
    return Contender(phase, joining, personal, mergeable)


def _doubled(federated: Phase, local: Phase, tuning: Phase) -> tuple[Phase, ...]:
    more = lambda phase, name: phase._replace(name=f"{name}, rank 2r")
    return (
        more(federated, "federated"),
        more(local, "local")._replace(keep=()),
        more(tuning, "federated + fine-tuning"),
    )


# --- A cell --------------------------------------------------------------------------


def run_cell(
    cell, settings, programs: Programs, problem: Problem, *, store, display
) -> dict:
    """Train, merge and score everything in a cell: its record."""
    federation, key = problem.federations[cell], jax.random.key(cell.seed)
    at = Context(settings, programs.table, problem, federation, cell, key)
    trained = _train_all(at, programs, store, display)
    merges = make_merges(at, trained.parents, display)
    methods = make_methods(at, trained.parents, merges, display)
    return {
        "methods": contenders.records(at, programs, trained, methods),
        "diagnostics": diagnostics(at, trained.parents, merges, methods),
        "privacy": {
            name: federating.epsilon(settings, phase, problem)
            for name, phase in _federated_phases(programs).items()
        },
    }


def _federated_phases(programs: Programs) -> dict[str, Phase]:
    others = {name: c.phase for name, c in programs.contenders.items()}
    return {"federated": programs.table.federated, **others}


def _train_all(at: Context, programs: Programs, store, display) -> Trained:
    settings, run = at.settings, partial(train, at, store, display)
    federated, local = train_parents(at, store, display)
    first = until(federated, settings.federated_rounds)
    tuned = run(at.programs.fine_tuning, first.models, at.fold(3))
    parents = Parents(first, until(local, settings.local_rounds), tuned)
    alike = stack(at.problem.adapter(at.fold(0)), clients=settings.clients)
    outcomes = {"federated": federated, "local": local}
    budget = contenders.budget_of(at, parents)
    for name, contender in programs.contenders.items():
        outcome = run(contender.phase._replace(budget=budget), alike, at.fold(1))
        joined = welcome(at, contender.joining, outcome, store, display)
        outcomes[name] = joined
    return Trained(parents, outcomes, _train_doubled(at, programs.doubled, budget, run))


def _train_doubled(at: Context, phases, budget, run) -> list:
    wide = at.problem.adapter(at.fold(0), 2 * at.settings.rank)
    alike = stack(wide, clients=at.settings.clients)
    federated, local, tuning = phases
    first = run(federated._replace(budget=budget), alike, at.fold(1))
    second = run(local, alike, at.fold(2))
    begin = until(first, at.settings.federated_rounds)
    tuned = run(tuning, begin.models, at.fold(3))
    return [first, second, tuned]
