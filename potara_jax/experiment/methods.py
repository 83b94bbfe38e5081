"""The rows of the table: every method's models, their scores, and what they cost."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters.lora import Adapter
from potara_jax.evaluation.metrics import Scores, adapter_parameters, worst_decile
from potara_jax.experiment.context import (
    Context,
    Parents,
    score,
    score_common,
    score_last,
)
from potara_jax.experiment.merges import Merges, merge
from potara_jax.experiment.phases import Outcome
from potara_jax.experiment.recipes import Row
from potara_jax.federated.rounds import stack
from potara_jax.runs.progress import Display


class Cost(NamedTuple):
    """What a method spends: bytes of all clients, local steps a client, seconds."""

    bytes_up: int = 0
    bytes_down: int = 0
    local_steps: int = 0
    seconds: float = 0.0


class Method(NamedTuple):
    """A row of the table: a model for every client `[C, ...]`, and what it took."""

    name: str
    adapters: Adapter
    cost: Cost
    weight: Any = None
    scores: Scores | None = None
    oracle: bool = False


def make_methods(
    at: Context,
    parents: Parents,
    merges: Merges,
    display: Display,
    longer: Outcome | None = None,
) -> list[Method]:
    """Every row of the table, scored, oracles last.

    longer: the federated phase to its last round, if that is another row.
    """
    federated, local, tuned = (cost(at, outcome) for outcome in parents)
    tuned, both = together(federated, tuned), together(federated, local)
    pair = parents.federated.models, parents.local.models
    ends = score(at, pair[1]), score_last(at, parents.federated)
    own = [
        Method("federated + fine-tuning", parents.fine_tuned.models, tuned),
        *merged_rows(at, pair, merges, both),
    ]
    return [
        base(at),
        Method("federated", pair[0], federated, scores=ends[1]),
        *(_longer(at, longer) if longer else ()),
        Method("local", pair[1], local, scores=ends[0]),
        *_scored(at, own, display),
        _ensemble(at, pair, both),
        *_oracles(at, pair, merges.points, ends, both, display),
    ]


def _longer(at: Context, outcome: Outcome) -> list[Method]:
    """The federated model of more rounds than those of the one to merge."""
    rounds = len(outcome.history)
    if rounds == at.settings.federated_rounds:
        return []
    spent, name = cost(at, outcome), f"federated, {rounds} rounds"
    scores = score_last(at, outcome)
    return [Method(name, outcome.models, spent, scores=scores)]


def _scored(at: Context, methods: list[Method], display: Display) -> list[Method]:
    return [
        m._replace(scores=jax.block_until_ready(score(at, m.adapters)))
        for m in display.each(f"{at.cell.name} scores of methods", methods)
    ]


def base(at: Context) -> Method:
    """The model that all start from."""
    adapters = stack(at.problem.adapter(at.fold(0)), clients=at.settings.clients)
    return Method("base", adapters, Cost(), scores=score_common(at, adapters))


def merged_rows(at: Context, pair, merges: Merges, cost: Cost) -> list[Method]:
    """Every row that merges, not scored."""

    def method(row: Row) -> Method:
        weight = merges.measured[row.weighing].weight
        merged = merge(at, row.merge, pair, weight)
        return Method(row.name, merged, cost, _shown(weight))

    return [method(row) for row in at.programs.rows]


def _shown(weight) -> Any:
    """A weight a client or a module: the mean, where a parameter has its own."""
    if isinstance(weight, tuple):
        return None
    if not isinstance(weight, dict):
        return weight
    flat = lambda x: x.reshape(len(x), -1)
    mean = lambda entry: jnp.hstack([flat(x) for x in jax.tree.leaves(entry)]).mean(1)
    return {path: mean(entry) for path, entry in weight.items()}


def _ensemble(at: Context, pair, cost: Cost) -> Method:
    """Both models' predictions mixed equally: the control of every merge."""
    half = jnp.full(at.settings.clients, 0.5)
    both = {"federated": pair[0], "local": pair[1], "weight": half}
    scores = at.programs.evaluate_ensemble(at.shared, both, at.federation.test)
    return Method("ensemble", (pair, ()), cost, half, scores)


def _oracles(
    at: Context, pair, points, ends, cost: Cost, display: Display
) -> list[Method]:
    """The best constant weight, and the best of each client, on the test examples.

    ends: the scores at both ends of the points, which are the parents'.
    """
    clients = at.settings.clients
    exact = lambda weight: merge(at, "delta", pair, jnp.full(clients, weight))
    between = display.each(f"{at.cell.name} scores of weights", list(points[1:-1]))
    inner = [jax.block_until_ready(score(at, exact(point))) for point in between]
    scores = jax.tree.map(lambda *x: jnp.stack(x), ends[0], *inner, ends[1])
    constant = jnp.full(clients, jnp.argmax(scores.accuracy.mean(1)))
    choices = {
        "best constant weight": constant,
        "best weight per client": jnp.argmax(scores.accuracy, 0),
    }
    pick = lambda choice: Scores(*(s[choice, jnp.arange(clients)] for s in scores))
    example = exact(0.0)
    return [
        Method(name, example, cost, points[choice], pick(choice), oracle=True)
        for name, choice in choices.items()
    ]


def cost(at: Context, outcome: Outcome) -> Cost:
    """What a phase spent; its final models count as received."""
    total = lambda name: sum(record[name] for record in outcome.history)
    down = total("bytes_down") + outcome.final_bytes
    steps = round(total("steps") / at.settings.clients)
    return Cost(total("bytes_up"), down, steps, outcome.seconds)


def together(first: Cost, second: Cost) -> Cost:
    """What two phases spent."""
    return Cost(*(a + b for a, b in zip(first, second, strict=True)))


def row(at: Context, method: Method) -> dict:
    """A method as `results.json` has it."""
    accuracy, there = np.asarray(method.scores.accuracy, np.float64), at.there
    late = accuracy[there:]
    parameters = adapter_parameters(method.adapters)
    return {
        "method": method.name,
        "oracle": method.oracle,
        **at.cell._asdict(),
        "mean": float(accuracy[:there].mean()),
        "worst_decile": worst_decile(accuracy[:there]),
        "newcomers": float(late.mean()) if late.size else None,
        "accuracy": accuracy.tolist(),
        "loss": np.asarray(method.scores.loss, np.float64).tolist(),
        "weights": listed(method.weight),
        **method.cost._asdict(),
        "inference_parameters": 0 if method.name == "base" else parameters,
    }


def listed(tree: Any) -> Any:
    """Arrays as lists, for JSON."""
    return (
        None if tree is None else jax.tree.map(lambda x: np.asarray(x).tolist(), tree)
    )
