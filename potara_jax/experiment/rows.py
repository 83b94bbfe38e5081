"""The rows of the table: every method's models, their scores, and what they cost."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters.lora import Adapter
from potara_jax.clients.task import ACCURACY
from potara_jax.data.federation import Ragged, Weighted
from potara_jax.evaluation.largest_class import largest_class
from potara_jax.evaluation.metrics import Scores, adapter_parameters, worst_decile
from potara_jax.experiment.context import Context
from potara_jax.experiment.label_prior import LabelPrior
from potara_jax.experiment.merges import (
    Merges,
    Pair,
    combine,
    measure_once,
    sent_together,
)
from potara_jax.experiment.methods import (
    EXACT,
    WITH_PRIOR,
    Method,
    default_method,
    merged_methods,
)
from potara_jax.experiment.phases import Outcome
from potara_jax.federated import stack
from potara_jax.merging import Measured

PARENT = "federated"  # the parent of a merge, unless it is another algorithm's model
_FLOAT = 4  # bytes
TUNED = "federated + fine-tuning"
LARGEST_CLASS = "largest class"  # no model: always a client's most frequent class


class Parents(NamedTuple):
    """The results of the three phases."""

    federated: Outcome
    local: Outcome
    fine_tuned: Outcome

    @property
    def pair(self) -> Pair:
        """The models to merge."""
        return self.federated.models, self.local.models


class Cost(NamedTuple):
    """What a method spends: bytes of all clients, local steps per client, seconds."""

    bytes_up: int = 0
    bytes_down: int = 0
    local_steps: int = 0
    seconds: float = 0.0

    @property
    def bytes(self) -> int:
        """Sent and received."""
        return self.bytes_up + self.bytes_down


class Row(NamedTuple):
    """A row of the table.

    Attributes:
      name: of the method.
      models: one for every client, `[C, ...]`.
      cost: what the method spends.
      weight: of the federated models, if they are merged.
      scores: of the models, once they are measured.
      oracle: whether it looks at test data.
      weighing: which weight a merged model has.
      merge: what has merged it.
      parent: what is merged in place of Potara's federated model.
      interval: how sure the weight is, see `Measured`.
      gains: how sure it is to be better than both models, see `Measured`.
    """

    name: str
    models: Any
    cost: Cost
    weight: Any = None
    scores: Scores | None = None
    oracle: bool = False
    weighing: str | None = None
    merge: str | None = None
    parent: str | None = None
    interval: tuple[jax.Array, jax.Array] | None = None
    gains: jax.Array | None = None

    @property
    def scored(self) -> Scores:
        """The scores of a row that has them."""
        assert self.scores is not None, f"{self.name} is not scored"
        return self.scores


def table_rows(
    at: Context, parents: Parents, merges: Merges, longer: Outcome | None = None
) -> list[Row]:
    """Every row of the table, scored, oracles last.

    Args:
      at: the cell.
      parents: the results of the three phases.
      merges: what was measured on the models.
      longer: the federated phase to its last round, if that is a row too.
    """
    federated, local, tuned = (cost(at, outcome) for outcome in parents)
    tuned, both = together(federated, tuned), together(federated, local)
    alone = Row("local", parents.pair[1], local, scores=score(at, parents.pair[1]))
    first = Row("federated", parents.pair[0], federated)
    first = first._replace(scores=score_last(parents.federated))
    corrected = _scored(at, prior_rows(at, parents.pair, merges, federated, both))
    tuning = Row(TUNED, parents.fine_tuned.models, tuned)
    merged = _scored(at, [tuning, *merged_rows(at, merges, both)])
    ends = alone.scored, _end(merges, first, corrected).scored
    return [
        base_row(at),
        *largest_class_rows(at),
        first,
        *(_longer_row(at, longer) if longer else ()),
        alone,
        *corrected,
        *merged,
        *_ensemble(at, merges.pair, both),
        *_oracles(at, merges.pair, merges.points, ends, both),
    ]


def _end(merges: Merges, federated: Row, corrected: list[Row]) -> Row:
    """The row of the federated model that is merged."""
    return corrected[0] if merges.prior and merges.prior.used else federated


def base_row(at: Context) -> Row:
    """The model that all clients start from."""
    adapters = stack(at.problem.adapter(at.key_for("adapter")), clients=at.clients)
    return Row("base", adapters, Cost(), scores=score_common(at, adapters))


def largest_class_rows(at: Context) -> list[Row]:
    """What always answering with a client's largest class gives, if there are any."""
    federation = at.federation
    scores = largest_class_of(at, federation.train, federation.test)
    return [Row(LARGEST_CLASS, (), Cost(), scores=scores)] if scores else []


def largest_class_of(at: Context, train: Ragged, test: Weighted) -> Scores | None:
    """The largest class of some clients; None if the task is no classification."""
    if at.problem.task.metric != ACCURACY:
        return None
    return largest_class(at.federation.pool, train, test)


def prior_rows(
    at: Context, pair: Pair, merges: Merges, federated: Cost, both: Cost
) -> list[Row]:
    """The federated model corrected by the clients' class shares, not yet scored.

    One row alone; and one merged by the default weight, unless all merges have the
    correction. None where examples have no classes.

    Args:
      at: the cell.
      pair: the federated and the local models.
      merges: what was measured on the models.
      federated: what the federated model costs.
      both: what both models cost.
    """
    prior = merges.prior
    if prior is None:
        return []
    corrected, shares = prior.correct(pair), prior_cost(at, prior)
    alone = Row(WITH_PRIOR, corrected[0], together(federated, shares))
    if prior.used:  # by all merges of the table
        return [alone]
    method = default_method(at.experiment, at.problem.task)
    title, spent = f"label prior + {method.name}", together(both, shares)
    measured = measure_once(at, f"weight {title}", method.weighing, corrected)
    return [alone, merged_row(at, title, method, corrected, measured, spent)]


def merged_rows(at: Context, merges: Merges, cost: Cost) -> list[Row]:
    """Every merged row, not yet scored."""
    if merges.prior and merges.prior.used:
        cost = together(cost, prior_cost(at, merges.prior))

    def row(method: Method) -> Row:
        measured = merges.measured[method.weighing]
        return merged_row(at, method.name, method, merges.pair, measured, cost)

    return at.each("merges", row, merged_methods(at.experiment, at.problem.task))


def merged_row(
    at: Context,
    name: str,
    method: Method,
    pair: Pair,
    measured: Measured,
    cost: Cost,
    *,
    parent: str = PARENT,
) -> Row:
    """A row of a merge, not yet scored; what clients send to weigh is in its cost."""
    up, down = sent_together(at, method.weighing, pair)
    return Row(
        name,
        combine(at, method.combination, pair, measured.weight),
        together(cost, Cost(up, down)),
        _weight_by_module(measured.weight),
        weighing=method.weighing.title,
        merge=method.combination.merge,
        parent=parent,
        interval=measured.interval,
        gains=measured.gains,
    )


def prior_cost(at: Context, prior: LabelPrior) -> Cost:
    """What class shares cost: clients send their counts, and receive the sums."""
    clients, classes = prior.bias.shape
    return Cost(_FLOAT * at.present * classes, _FLOAT * clients * classes)


def _weight_by_module(weight: Any) -> Any:
    """One weight per client or module; the mean over a module's parameters."""
    if isinstance(weight, tuple):
        return None
    if not isinstance(weight, dict):
        return weight

    def mean(entry: Any) -> jax.Array:
        parts = [x.reshape(len(x), -1) for x in jax.tree.leaves(entry)]
        return jnp.hstack(parts).mean(1)

    return {path: mean(entry) for path, entry in weight.items()}


def _longer_row(at: Context, outcome: Outcome) -> list[Row]:
    """The federated model after more rounds than the one to merge."""
    rounds = len(outcome.history)
    if rounds == at.experiment.federated.rounds:
        return []
    spent, name = cost(at, outcome), f"federated, {rounds} rounds"
    return [Row(name, outcome.models, spent, scores=score_last(outcome))]


def _scored(at: Context, rows: list[Row]) -> list[Row]:
    def scored(row: Row) -> Row:
        measure = lambda: score(at, row.models)
        return row._replace(scores=at.once_measured(f"scores {row.name}", measure))

    return at.each("scores of methods", scored, rows)


def _ensemble(at: Context, pair: Pair, cost: Cost) -> list[Row]:
    """Both models' predictions averaged: the control of every merge."""
    if at.problem.task.again is None:
        return []
    half = jnp.full(at.clients, 0.5)
    both = {"federated": pair[0], "local": pair[1], "weight": half}
    scores = at.programs.evaluate_ensemble(at.shared, both, at.federation.test)
    return [Row("ensemble", (pair, ()), cost, half, scores)]


def _oracles(
    at: Context,
    pair: Pair,
    points: jax.Array,
    ends: tuple[Scores, Scores],
    cost: Cost,
) -> list[Row]:
    """The best constant weight, and the best of each client, on the test examples.

    ends: the scores at both ends of the points, which are the parents'.
    """

    def exact(weight: Any) -> Adapter:
        return combine(at, EXACT, pair, jnp.full(at.clients, weight))

    def score_between(point: float) -> Scores:
        return at.once_measured(f"scores at {point}", lambda: score(at, exact(point)))

    inner = at.each("scores of weights", score_between, points[1:-1].tolist())
    scores = jax.tree.map(lambda *x: jnp.stack(x), ends[0], *inner, ends[1])
    constant = jnp.full(at.clients, _best(scores.accuracy.mean(1)))
    choices = {
        "best constant weight": constant,
        "best weight per client": _best(scores.accuracy),
    }

    def chosen(choice: jax.Array) -> Scores:
        return jax.tree.map(lambda s: s[choice, jnp.arange(at.clients)], scores)

    example = exact(0.0)
    return [
        Row(name, example, cost, points[choice], chosen(choice), oracle=True)
        for name, choice in choices.items()
    ]


def _best(scores: jax.Array) -> jax.Array:
    """Which of the scores `[T, ...]` is highest; that of a diverged model never is."""
    return jnp.argmax(jnp.where(jnp.isnan(scores), -jnp.inf, scores), 0)


# --- Scores and costs ----------------------------------------------------------------


def score(at: Context, adapters: Adapter) -> Scores:
    """Every client's model on its own test distribution."""
    return at.programs.evaluate(at.shared, adapters, at.federation.test)


def score_common(at: Context, adapters: Adapter) -> Scores:
    """The scores of a model that all clients share; reads the first client's."""
    first = jax.tree.map(lambda x: x[0], adapters)
    return at.programs.evaluate_common(at.shared, first, at.federation.test)


def score_last(outcome: Outcome) -> Scores:
    """The scores of a federated phase's last models."""
    return outcome.marks[len(outcome.history)].scores


def cost(at: Context, outcome: Outcome) -> Cost:
    """What a phase spent; its final models count as received."""
    total = lambda name: sum(record[name] for record in outcome.history)
    down = total("bytes_down") + outcome.final_bytes
    steps = round(total("steps") / at.clients)
    return Cost(total("bytes_up"), down, steps, outcome.seconds)


def together(first: Cost, second: Cost) -> Cost:
    """What two phases spent."""
    return Cost(
        first.bytes_up + second.bytes_up,
        first.bytes_down + second.bytes_down,
        first.local_steps + second.local_steps,
        first.seconds + second.seconds,
    )


# --- Records -------------------------------------------------------------------------


def record(at: Context, row: Row) -> dict[str, Any]:
    """A row as `results.json` has it."""
    accuracy = np.asarray(row.scored.accuracy, np.float64)
    late = accuracy[at.present :]
    parameters = adapter_parameters(row.models)
    return {
        "method": row.name,
        "oracle": row.oracle,
        **at.cell._asdict(),
        "weighing": row.weighing,
        "merge": row.merge,
        "parent": row.parent,
        **mean_and_worst(at, row.scored),
        "newcomers": float(late.mean()) if late.size else None,
        "accuracy": accuracy.tolist(),
        **_balanced(row.scored),
        "loss": np.asarray(row.scored.loss, np.float64).tolist(),
        "weights": as_lists(row.weight),
        **_certainty(row),
        **row.cost._asdict(),
        "inference_parameters": 0 if row.name == "base" else parameters,
    }


def _certainty(row: Row) -> dict[str, Any]:
    """How sure a row's weights are, if it says."""
    interval = {} if row.interval is None else {"interval": as_lists(row.interval)}
    return interval | ({} if row.gains is None else {"gains": as_lists(row.gains)})


def _balanced(scores: Scores) -> dict[str, Any]:
    """Every client's accuracy under equal shares of its classes, if there are any."""
    return {} if scores.balanced is None else {"balanced": as_lists(scores.balanced)}


def mean_and_worst(at: Context, scores: Scores) -> dict[str, float]:
    """Means and worst decile over the clients that take part from the beginning."""
    present = jax.tree.map(lambda x: np.asarray(x, np.float64)[: at.present], scores)
    accuracy, balanced = present.accuracy, present.balanced
    means = {"mean": float(accuracy.mean()), "worst_decile": worst_decile(accuracy)}
    return means | (
        {} if balanced is None else {"balanced_mean": float(balanced.mean())}
    )


def mean_accuracy(at: Context, scores: Scores) -> float:
    """The mean over the clients that take part from the beginning."""
    return mean_and_worst(at, scores)["mean"]


def as_lists(tree: Any) -> Any:
    """Arrays as lists, for JSON."""
    if tree is None:
        return None
    return jax.tree.map(lambda x: np.asarray(x).tolist(), tree)
