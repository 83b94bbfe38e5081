"""The rows of a comparison: algorithms at a budget, pipelines, and Potara's parents."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from potara_jax.data.federation import take
from potara_jax.evaluation.metrics import worst_decile
from potara_jax.experiment.context import Context, Parents, score
from potara_jax.experiment.merges import measure, merge
from potara_jax.experiment.methods import Cost, Method, cost, row, together
from potara_jax.experiment.phases import Budget, Outcome, until
from potara_jax.experiment.recipes import OWN, SPECIAL
from potara_jax.federated.algorithms.feddpa import anchor_index

ANCHORS = 5
TUNED = "federated + fine-tuning"
_NO_MERGES = ("base", "federated", "local", TUNED)


class Trained(NamedTuple):
    """What a cell has trained: Potara's parents; every algorithm, to the last round.

    `doubled`: the federated, local and fine-tuned models of rank 2r.
    """

    parents: Parents
    outcomes: dict[str, Outcome]
    doubled: list[Outcome]


def records(at: Context, programs, trained: Trained, methods: list[Method]) -> list:
    """Every row, as `results.json` has it, with what it reaches at Potara's budgets.

    `kind`: an algorithm, a pipeline of several phases, a merge, Potara with another
    parent, a bound, or the local parent, which has trained for less than the budget.
    """
    budget = next(m for m in methods if m.name == SPECIAL).cost
    begun = next(m for m in methods if m.name == "local")
    title = f"local, {at.settings.local_rounds} rounds"
    kinds = {
        "parent": [begun._replace(name=title)],
        "merge": [m for m in methods if not m.oracle and m.name not in _NO_MERGES],
        "bound": [m for m in methods if m.oracle or m.name == "base"],
        "pipeline": [m for m in methods if m.name == TUNED]
        + _pipelines(at, programs, trained),
        "exchanged": _exchanged(at, programs, trained),
    }
    fixed = [
        row(at, method) | _fixed(at, method, budget) | {"kind": kind}
        for kind, each in kinds.items()
        for method in each
    ]
    return _algorithms(at, programs, trained, budget) + fixed


def _algorithms(at: Context, programs, trained: Trained, budget: Cost) -> list[dict]:
    federated, local, _ = trained.doubled
    doubled = {"federated, rank 2r": federated, "local, rank 2r": local}
    return [
        _at_budget(at, name, outcome, budget)
        | {"kind": "algorithm", "personal": _personal(programs, name)}
        for name, outcome in (trained.outcomes | doubled).items()
    ]


def _personal(programs, name: str) -> bool:
    """Whether the clients of a row have models of their own."""
    known = programs.contenders.get(name)
    return known.personal if known else name.startswith("local")


def budget_of(at: Context, parents: Parents) -> Budget:
    """What Potara spends: the federated phase, and then the local one."""
    spent = together(cost(at, parents.federated), cost(at, parents.local))
    return Budget(_bytes(spent), spent.local_steps)


# --- Algorithms, at the rounds where they have spent what Potara has -----------------


def _at_budget(at: Context, name: str, outcome: Outcome, budget: Cost) -> dict:
    """The row of an algorithm where it has spent what Potara has, or a little less.

    Where it spends more bytes from the first mark on, that is by steps alone.
    """
    curve = [_point(at, outcome, number) for number in outcome.marks]
    allowed = {
        "equal_bytes": [p for p in curve if p["bytes"] <= _bytes(budget)],
        "equal_steps": [p for p in curve if p["steps"] <= budget.local_steps],
    }
    both = [p for p in allowed["equal_steps"] if p in allowed["equal_bytes"]]
    chosen = (both or allowed["equal_steps"] or curve[:1])[-1]["round"]
    seen = outcome.marks[chosen]
    spent = cost(at, _seen(outcome, chosen))
    method = Method(name, outcome.models, spent, scores=seen.scores)
    best = {k: points[-1]["mean"] if points else None for k, points in allowed.items()}
    return row(at, method) | best | {"over": not both, "curve": curve}


def _seen(outcome: Outcome, number: int) -> Outcome:
    """An outcome's account after some rounds."""
    mark = outcome.marks[number]
    return outcome._replace(
        history=outcome.history[:number],
        final_bytes=sum(map(int, mark.received)),
        seconds=float(mark.seconds),
    )


def _point(at: Context, outcome: Outcome, number: int) -> dict:
    spent = cost(at, _seen(outcome, number))
    accuracy = np.asarray(outcome.marks[number].scores.accuracy, np.float64)
    return {
        "round": number,
        "bytes": _bytes(spent),
        "steps": spent.local_steps,
        "mean": float(accuracy[: at.there].mean()),
        "worst_decile": worst_decile(accuracy[: at.there]),
    }


def _bytes(spent: Cost) -> int:
    return spent.bytes_up + spent.bytes_down


def _fixed(at: Context, method: Method, budget: Cost) -> dict:
    """What a method has at the budgets that can only be had as a whole."""
    mean = float(np.asarray(method.scores.accuracy, np.float64)[: at.there].mean())
    bytes_fit = _bytes(method.cost) <= _bytes(budget)
    steps_fit = method.cost.local_steps <= budget.local_steps
    return {
        "equal_bytes": mean if bytes_fit else None,
        "equal_steps": mean if steps_fit else None,
        "over": not (bytes_fit and steps_fit),
        "curve": [],
    }


# --- Methods of several phases -------------------------------------------------------


def _pipelines(at: Context, programs, trained: Trained) -> list[Method]:
    federated, _, tuned = trained.parents
    spent = together(cost(at, federated), cost(at, tuned))
    methods = [
        _tuned_doubled(at, trained),
        _feddpa_f(at, programs, federated, tuned, spent),
    ]
    if "fdlora" in trained.outcomes and "lorahub" in at.programs.weigh:
        outcome = until(trained.outcomes["fdlora"], at.settings.federated_rounds)
        methods.append(_fdlora(at, outcome))
    return methods


def _tuned_doubled(at: Context, trained: Trained) -> Method:
    federated, _, tuned = trained.doubled
    begun = until(federated, at.settings.federated_rounds)
    spent = together(cost(at, begun), cost(at, tuned))
    scores = score(at, tuned.models)
    return Method(f"{TUNED}, rank 2r", tuned.models, spent, scores=scores)


def _feddpa_f(at: Context, programs, federated, tuned, spent: Cost) -> Method:
    """FedDPA-F: FedIT's model and the same fine-tuned, mixed for each input."""
    near = jax.vmap(lambda own: anchor_index(own, ANCHORS))(at.federation.train)
    model = {
        "federated": federated.models,
        "local": tuned.models,
        "anchors": take(at.federation.pool, near),
    }
    scores = programs.evaluate_by_instance(at.shared, model, at.federation.test)
    return Method("feddpa_f", model, spent, scores=scores)


def _fdlora(at: Context, outcome: Outcome) -> Method:
    """FDLoRA with its fusion: weights of factors, searched for on held-out samples."""
    pair = outcome.models["shared"], outcome.models["personal"]
    weight = measure(at, "lorahub", pair).weight
    merged = merge(at, "factor", pair, weight)
    spent, scores = cost(at, outcome), score(at, merged)
    return Method("fdlora + fusion", merged, spent, scores=scores)


def _exchanged(at: Context, programs, trained: Trained) -> list[Method]:
    """Potara with every other algorithm's model in the place of the federated one."""
    local, rows = trained.parents.local, []
    for name, contender in programs.contenders.items():
        if not contender.mergeable:
            continue
        outcome = until(trained.outcomes[name], at.settings.federated_rounds)
        pair, spent = (outcome.models, local.models), cost(at, outcome)
        for weighing in (SPECIAL, OWN):
            weight = measure(at, weighing, pair).weight
            merged = merge(at, "delta", pair, weight)
            title, both = f"{weighing} ({name})", together(spent, cost(at, local))
            scores = score(at, merged)
            rows.append(Method(title, merged, both, weight, scores))
    return rows
