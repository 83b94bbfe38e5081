"""Every federated algorithm and every merge on the same federations.

All algorithms start from the same factors and draw the same cohorts and batches. They
run for as many rounds as both of Potara's phases together, and are scored along the way
and at the last round within Potara's budget, so that they can be compared at equal
bytes, at equal local steps, or both. Learning rates and hyper-parameters were searched
in the same way for every algorithm, see `tune`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax

from potara_jax import reports
from potara_jax.experiment import federating, trials
from potara_jax.experiment.cell import ParentPhases, parent_phases, train, train_parents
from potara_jax.experiment.checks import require_one_of
from potara_jax.experiment.context import Context
from potara_jax.experiment.diagnostics import diagnostics
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.merges import measure_all
from potara_jax.experiment.newcomers import joining_phase, welcome
from potara_jax.experiment.phases import Budget, Outcome, Phase, until
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.rows import Parents, table_rows
from potara_jax.federated import stack
from potara_jax.federated.registry import algorithms
from potara_jax.jobs import contenders
from potara_jax.jobs.contenders import Contender, Trained
from potara_jax.jobs.job import Record, best_line
from potara_jax.jobs.table import table_results
from potara_jax.reports import document
from potara_jax.reports.clients import clients_csv
from potara_jax.reports.document import Report
from potara_jax.runs.store import Store

_MARKS = 6


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare federated algorithms and merges at equal bytes and local steps."""

    algorithms: tuple[str, ...] = ()
    """Algorithms to compare with the federated and the local model, of `potara list
    algorithms`. Default: all."""

    name: ClassVar[str] = "compare"
    presets: ClassVar[Mapping[str, Any]] = {}

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` if an algorithm is not registered."""
        for name in self.algorithms:
            require_one_of(name, "algorithms", algorithms())

    def check_problem(self, experiment: Experiment, problem: Problem) -> None:
        """Check that every row can be merged, and privacy be accounted for.

        Args:
          experiment: with its settings.
          problem: what is learned.

        Raises:
          ValueError: the federated model or a row cannot be merged, no model can have
            twice its rank, an algorithm would share nothing, or privacy is on and an
            algorithm does not declare what its server takes.
        """
        federating.check_mergeable(experiment, problem)
        trials.check_methods(experiment, problem)
        _check_doubled(experiment, problem)
        for name in self.algorithms or possible(experiment, problem, algorithms()):
            algorithm = federating.tuned_algorithm(experiment, problem.task, name)
            federating.check_shared(experiment, problem, algorithm)
            if algorithm.sum_only is None:
                federating.check_private(experiment, algorithm)

    def names(self, experiment: Experiment) -> list[str]:
        """The algorithms to compare, without those in every comparison."""
        chosen = self.algorithms or tuple(algorithms())
        always = "local", experiment.federated.algorithm
        return [name for name in chosen if name not in always]

    def rounds(self, experiment: Experiment) -> int:
        """The algorithms', both parents' and fine-tuning's, twice."""
        joining = experiment.participation.newcomers
        late = experiment.local.rounds if joining else 0
        each = len(self.names(experiment)) * (last_round(experiment) + late)
        return each + 4 * last_round(experiment) + 2 * experiment.local.rounds

    def run_cell(self, at: Context) -> Record:
        """Train, merge and score everything in a cell."""
        names = self.names(at.experiment)
        phases = _phases(at, possible(at.experiment, at.problem, names))
        trained = _train_all(at, phases)
        merges = measure_all(at, trained.parents.pair)
        rows = table_rows(at, trained.parents, merges)
        federated = {"federated": phases.federated}
        others = {name: c.phase for name, c in phases.contenders.items()}
        return {
            "methods": contenders.records(at, phases.contenders, trained, rows),
            "diagnostics": diagnostics(
                at, phases.federated, trained.parents, merges, rows
            ),
            "privacy": {
                name: federating.epsilon(at.experiment, phase)
                for name, phase in (federated | others).items()
            },
        }

    def summary(self, at: Context, record: Record) -> str:
        """The best method."""
        return best_line(at, record["methods"])

    def results(self, records: list[Record]) -> Record:
        """All rows, diagnostics and accounts of privacy."""
        return table_results(records) | {"privacy": records[0]["privacy"]}

    def files(self, results: Record) -> Mapping[str, str]:
        """Every client's results."""
        return {"clients.csv": clients_csv(results)}

    def tables(self, results: Record, store: Store) -> list[document.Table]:
        """What a terminal shows."""
        return reports.comparison.brief(results)

    def report(self, results: Record, store: Store, figures: Path) -> Report:
        """The comparison's tables and figures."""
        return reports.comparison.report(results, figures)


def possible(
    experiment: Experiment, problem: Problem, names: Iterable[str]
) -> list[str]:
    """The algorithms whose needs the task meets."""

    def is_possible(name: str) -> bool:
        try:
            algorithm = federating.tuned_algorithm(experiment, problem.task, name)
            federating.check_shared(experiment, problem, algorithm)
            return algorithm.predict(problem.task) is not None
        except ValueError:
            return False

    return [name for name in names if is_possible(name)]


def _check_doubled(experiment: Experiment, problem: Problem) -> None:
    """Raise `ValueError` if the modules are too small for models of rank 2r."""
    rank, key = experiment.lora.rank, jax.random.key(0)
    try:
        jax.eval_shape(lambda key: problem.adapter(key, 2 * rank), key)
    except ValueError as error:
        reason = "a comparison also trains models of twice that"
        raise ValueError(f"lora.rank is {rank}: {reason}, and {error}") from None


def last_round(experiment: Experiment) -> int:
    """The number of rounds of Potara's two phases together."""
    return experiment.federated.rounds + experiment.local.rounds


# --- Phases --------------------------------------------------------------------------


class _Phases(NamedTuple):
    """The phases of a comparison; `doubled` are of rank 2r."""

    federated: Phase
    local: Phase
    fine_tuning: Phase
    doubled: tuple[Phase, ...]
    contenders: dict[str, Contender]

    @property
    def parents(self) -> ParentPhases:
        """The phases that train both parents of a merge."""
        return ParentPhases(self.federated, self.local)


def _phases(at: Context, names: list[str]) -> _Phases:
    """All phases, each made once for all cells."""
    once, algorithm = at.programs.once, at.experiment.federated.algorithm
    parents = once("parents", lambda: parent_phases(at))
    federated = once("federated", lambda: _federated(at, algorithm))
    local = _longer(at.experiment, parents.local)
    return _Phases(
        federated=_with_middle(at.experiment, federated),
        local=local,
        fine_tuning=parents.fine_tuning,
        doubled=_doubled(federated, local, parents.fine_tuning),
        contenders={
            name: once(("contender", name), partial(_contender, at, name))
            for name in names
        },
    )


def _federated(at: Context, name: str) -> Phase:
    """An algorithm's phase, with its tuned hyper-parameters."""
    experiment, problem = at.experiment, at.problem
    last = last_round(experiment)
    return federating.federated_phase(
        experiment,
        problem,
        federating.tuned_algorithm(experiment, problem.task, name),
        name=name,
        last=last,
        marks=federating.marks_of(last, _MARKS),
        keep=(experiment.federated.rounds,),
    )


def _with_middle(experiment: Experiment, phase: Phase) -> Phase:
    """The parent's phase, which also keeps the models half-way."""
    middle = federating.marks_of(experiment.federated.rounds, 2)[:1]
    return phase._replace(
        name="federated",
        marks=sorted({*phase.marks, *middle}),
        keep=(*middle, *phase.keep),
    )


def _longer(experiment: Experiment, local: Phase) -> Phase:
    marks = federating.marks_of(last_round(experiment), _MARKS)
    kept = experiment.local.rounds
    return local._replace(
        rounds=last_round(experiment), marks=sorted({kept, *marks}), keep=(kept,)
    )


def _contender(at: Context, name: str) -> Contender:
    phase = _federated(at, name)
    personal = phase.algorithm.personal
    joining = joining_phase(at.experiment, phase) if personal else None
    mergeable = federating.model_rank(phase.algorithm, at.problem) is not None
    return Contender(phase, joining, personal, mergeable)


def _doubled(federated: Phase, local: Phase, tuning: Phase) -> tuple[Phase, ...]:
    wider = lambda phase, name: phase._replace(name=f"{name}, rank 2r")
    return (
        wider(federated, "federated"),
        wider(local, "local")._replace(keep=()),
        wider(tuning, "federated + fine-tuning"),
    )


# --- Training ------------------------------------------------------------------------


def _train_all(at: Context, phases: _Phases) -> Trained:
    experiment = at.experiment
    federated, local = train_parents(at, phases.parents)
    first = until(federated, experiment.federated.rounds)
    tuned = train(at, phases.fine_tuning, first.models, at.key_for("fine-tuning"))
    parents = Parents(first, until(local, experiment.local.rounds), tuned)
    adapters = stack(at.problem.adapter(at.key_for("adapter")), clients=at.clients)
    outcomes = {"federated": federated, "local": local}
    budget = contenders.budget_of(at, parents)
    for name, contender in phases.contenders.items():
        phase = contender.phase._replace(budget=budget)
        outcome = train(at, phase, adapters, at.key_for("federated"))
        outcomes[name] = welcome(at, contender.joining, outcome)
    return Trained(parents, outcomes, _train_doubled(at, phases.doubled, budget))


def _train_doubled(
    at: Context, phases: tuple[Phase, ...], budget: Budget
) -> list[Outcome]:
    wide = at.problem.adapter(at.key_for("adapter"), 2 * at.experiment.lora.rank)
    adapters = stack(wide, clients=at.clients)
    federated, local, tuning = phases
    federated = federated._replace(budget=budget)
    first = train(at, federated, adapters, at.key_for("federated"))
    second = train(at, local, adapters, at.key_for("local"))
    begin = until(first, at.experiment.federated.rounds)
    tuned = train(at, tuning, begin.models, at.key_for("fine-tuning"))
    return [first, second, tuned]
