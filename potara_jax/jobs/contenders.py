"""The rows of a comparison: algorithms at a budget, pipelines, and Potara's parents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax

from potara_jax.data.federation import take
from potara_jax.evaluation.metrics import evaluator
from potara_jax.experiment.context import Context
from potara_jax.experiment.label_prior import as_set, label_prior_of
from potara_jax.experiment.merges import combine, measure, measure_once
from potara_jax.experiment.methods import (
    ALL,
    BY_FACTOR,
    POTARA,
    WITH_PRIOR,
    Method,
    Weighing,
    all_methods,
    default_method,
)
from potara_jax.experiment.phases import Budget, Outcome, Phase, account_until, until
from potara_jax.experiment.rows import (
    LARGEST_CLASS,
    TUNED,
    Cost,
    Parents,
    Row,
    cost,
    mean_accuracy,
    mean_and_worst,
    merged_row,
    prior_cost,
    record,
    score,
    together,
)
from potara_jax.federated.algorithms.feddpa import anchor_index, instance_wise
from potara_jax.jobs.job import Record

_ANCHORS = 5
_UNTRAINED = ("base", LARGEST_CLASS)
_NO_MERGES = (*_UNTRAINED, "federated", "local", TUNED, WITH_PRIOR)
_FUSION = Weighing("lorahub")
# An algorithm whose own model is not what its paper ends with, which is a pipeline.
_TITLES = {"fdlora": "fdlora, plain mean"}


class Contender(NamedTuple):
    """An algorithm, and how newcomers join it.

    Attributes:
      phase: its rounds.
      joining: the rounds in which newcomers join, if any.
      personal: clients keep something.
      mergeable: its model is an adapter.
    """

    phase: Phase
    joining: Phase | None
    personal: bool
    mergeable: bool


Contenders = Mapping[str, Contender]


class Trained(NamedTuple):
    """What a cell has trained.

    Attributes:
      parents: Potara's.
      outcomes: of every algorithm, to the last round.
      doubled: the federated, local and fine-tuned models of rank 2r.
    """

    parents: Parents
    outcomes: dict[str, Outcome]
    doubled: list[Outcome]


def records(
    at: Context, contenders: Contenders, trained: Trained, rows: list[Row]
) -> list[Record]:
    """Every row, as `results.json` has it, with what it reaches at Potara's budgets.

    A row's `kind` is an algorithm, a pipeline of several phases, a merge, Potara with
    another parent, an algorithm's model corrected by class shares, a bound, or the
    local parent, which trains for less than the budget.

    Args:
      at: the cell.
      contenders: all algorithms, by name.
      trained: what the cell has trained.
      rows: of the table.
    """
    budget = _largest(row.cost for row in rows if row.merge)
    begun = next(row for row in rows if row.name == "local")
    title = f"local, {at.experiment.local.rounds} rounds"
    tuned = [row for row in rows if row.name in (TUNED, WITH_PRIOR)]
    kinds = {
        "parent": [begun._replace(name=title)],
        "merge": [r for r in rows if not r.oracle and r.name not in _NO_MERGES],
        "bound": [row for row in rows if row.oracle or row.name in _UNTRAINED],
        "pipeline": tuned + _pipelines(at, trained),
        "exchanged": _exchanged(at, contenders, trained),
        "corrected": _corrected(at, contenders, trained),
    }
    fixed = [
        record(at, row) | _fixed(at, row, budget) | {"kind": kind}
        for kind, each in kinds.items()
        for row in each
    ]
    return _algorithms(at, contenders, trained, budget) + fixed


def _largest(costs: Iterable[Cost]) -> Cost:
    """The most of everything: merges differ by the few numbers that weigh."""
    return Cost(*map(max, zip(*costs, strict=True)))


def _algorithms(
    at: Context, contenders: Contenders, trained: Trained, budget: Cost
) -> list[Record]:
    federated, local, _ = trained.doubled
    doubled = {"federated, rank 2r": federated, "local, rank 2r": local}
    return [
        _at_budget(at, _TITLES.get(name, name), outcome, budget)
        | {"kind": "algorithm", "personal": _is_personal(contenders, name)}
        for name, outcome in (trained.outcomes | doubled).items()
    ]


def _is_personal(contenders: Contenders, name: str) -> bool:
    """Whether each client of a row has its own model."""
    known = contenders.get(name)
    return known.personal if known else name.startswith("local")


def budget_of(at: Context, parents: Parents) -> Budget:
    """What Potara spends: the federated phase, and then the local one."""
    spent = together(cost(at, parents.federated), cost(at, parents.local))
    return Budget(spent.bytes, spent.local_steps)


# --- Algorithms, at the rounds where they have spent what Potara has -----------------


def _at_budget(at: Context, name: str, outcome: Outcome, budget: Cost) -> Record:
    """An algorithm's row at the last round within Potara's budget.

    If it exceeds the bytes at the first mark already, only the steps are limited.
    """
    curve = [_point(at, outcome, number) for number in outcome.marks]
    allowed = {
        "equal_bytes": [p for p in curve if p["bytes"] <= budget.bytes],
        "equal_steps": [p for p in curve if p["steps"] <= budget.local_steps],
    }
    both = [p for p in allowed["equal_steps"] if p in allowed["equal_bytes"]]
    chosen = (both or allowed["equal_steps"] or curve[:1])[-1]["round"]
    mark = outcome.marks[chosen]
    spent = cost(at, account_until(outcome, chosen))
    row = Row(name, outcome.models, spent, scores=mark.scores)
    best = {k: points[-1]["mean"] if points else None for k, points in allowed.items()}
    return record(at, row) | best | {"over": not both, "curve": curve}


def _point(at: Context, outcome: Outcome, number: int) -> Record:
    spent = cost(at, account_until(outcome, number))
    return {
        "round": number,
        "bytes": spent.bytes,
        "steps": spent.local_steps,
        **mean_and_worst(at, outcome.marks[number].scores),
    }


def _fixed(at: Context, row: Row, budget: Cost) -> Record:
    """The scores at the budgets of a method that cannot be stopped early."""
    mean = mean_accuracy(at, row.scored)
    bytes_fit = row.cost.bytes <= budget.bytes
    steps_fit = row.cost.local_steps <= budget.local_steps
    return {
        "equal_bytes": mean if bytes_fit else None,
        "equal_steps": mean if steps_fit else None,
        "over": not (bytes_fit and steps_fit),
        "curve": [],
    }


# --- Methods of several phases -------------------------------------------------------


def _pipelines(at: Context, trained: Trained) -> list[Row]:
    federated, _, tuned = trained.parents
    spent = together(cost(at, federated), cost(at, tuned))
    rows, task = [_tuned_doubled(at, trained)], at.problem.task
    if task.features is not None and task.logits is not None:
        rows.append(_feddpa_f(at, federated, tuned, spent))
    named = at.experiment.merging.methods
    fused = not named or ALL in named or _FUSION.weight in named
    if "fdlora" in trained.outcomes and fused:
        rounds = at.experiment.federated.rounds
        rows.append(_fdlora(at, until(trained.outcomes["fdlora"], rounds)))
    return rows


def _tuned_doubled(at: Context, trained: Trained) -> Row:
    federated, _, tuned = trained.doubled
    begun = until(federated, at.experiment.federated.rounds)
    spent = together(cost(at, begun), cost(at, tuned))
    scores = score(at, tuned.models)
    return Row(f"{TUNED}, rank 2r", tuned.models, spent, scores=scores)


def _feddpa_f(at: Context, federated: Outcome, tuned: Outcome, spent: Cost) -> Row:
    """FedDPA-F: FedIT's model and the same fine-tuned, mixed for each input."""
    examples = at.federation.train
    near = jax.vmap(lambda each: anchor_index(each, _ANCHORS))(examples)
    model = {
        "federated": federated.models,
        "local": tuned.models,
        "anchors": take(at.federation.pool, near),
    }
    task, layout = instance_wise(at.problem.task), at.programs.layout
    evaluate = at.programs.once("by instance", lambda: evaluator(task, layout=layout))
    scores = evaluate(at.shared, model, at.federation.test)
    return Row("feddpa_f", model, spent, scores=scores)


def _fdlora(at: Context, outcome: Outcome) -> Row:
    """FDLoRA with its fusion: weights of factors, searched on held-out samples."""
    pair = outcome.models["shared"], outcome.models["personal"]
    weight = measure(at, _FUSION, pair).weight
    merged = combine(at, BY_FACTOR, pair, weight)
    spent, scores = cost(at, outcome), score(at, merged)
    return Row("fdlora, AdaFusion", merged, spent, scores=scores)


def _exchanged(at: Context, contenders: Contenders, trained: Trained) -> list[Row]:
    """Potara with every other algorithm's model in place of the federated one."""
    local, rows = trained.parents.local, []
    known = {method.name: method for method in all_methods(at.experiment)}
    methods = known[POTARA], default_method(at.experiment, at.problem.task)
    for name, contender in contenders.items():
        if not contender.mergeable:
            continue
        outcome = until(trained.outcomes[name], at.experiment.federated.rounds)
        spent = together(cost(at, outcome), cost(at, local))
        pair = as_set(at, (outcome.models, local.models))
        rows += [_exchange(at, method, name, pair, spent) for method in methods]
    return rows


def _corrected(at: Context, contenders: Contenders, trained: Trained) -> list[Row]:
    """Every algorithm's common model, corrected by the clients' class shares."""
    prior, rows = label_prior_of(at, trained.parents.pair), []
    if prior is None:
        return []
    for name, contender in contenders.items():
        if contender.personal or not contender.mergeable:
            continue
        outcome = until(trained.outcomes[name], at.experiment.federated.rounds)
        spent = together(cost(at, outcome), prior_cost(at, prior))
        models, _ = prior.correct((outcome.models, trained.parents.local.models))
        title = f"{name} + label prior"
        scores = at.once_measured(f"scores {title}", lambda m=models: score(at, m))
        rows.append(Row(title, models, spent, scores=scores))
    return rows


def _exchange(at: Context, method: Method, parent: str, pair: Any, spent: Cost) -> Row:
    name = f"{method.name} ({parent})"
    measured = measure_once(at, f"weight {name}", method.weighing, pair)
    row = merged_row(at, name, method, pair, measured, spent, parent=parent)
    scores = at.once_measured(f"scores {name}", lambda: score(at, row.models))
    return row._replace(scores=scores)
