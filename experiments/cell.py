"""One cell: the phases, the merges, every method's score, and the diagnostics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.checkpoints import Saved, save
from experiments.display import Display
from experiments.phases import Outcome, run_phase
from experiments.problem import Problem
from experiments.programs import Programs
from experiments.settings import Settings
from experiments.store import Cell, Store
from potara_jax.adapters.lora import Adapter
from potara_jax.data.federation import Batch, Federation, Ragged, take
from potara_jax.evaluation.metrics import (
    Scores,
    adapter_parameters,
    segment_barrier,
    worst_decile,
)
from potara_jax.federated.interface import Shared
from potara_jax.federated.rounds import stack
from potara_jax.merging.programs import Merged, Samples
from potara_jax.merging.weights import grid

_DAMPING_DECADES = (-4, 2)
_MERGED_SHOWN = ("Potara core", "Hermite segment")


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


class _Cell(NamedTuple):
    """What every step of a cell works with."""

    settings: Settings
    programs: Programs
    problem: Problem
    federation: Federation
    cell: Cell
    key: jax.Array

    @property
    def shared(self) -> Shared:
        return Shared(self.problem.base, self.federation.pool)

    def fold(self, number: int) -> jax.Array:
        return jax.random.fold_in(self.key, number)


class _Parents(NamedTuple):
    federated: Outcome
    local: Outcome
    fine_tuned: Outcome


def run_cell(
    cell: Cell,
    settings: Settings,
    programs: Programs,
    problem: Problem,
    *,
    store: Store,
    display: Display,
) -> dict:
    """Run a cell, or what is left of it; its record `{"methods", "diagnostics"}`."""
    key = jax.random.key(cell.seed)
    federation = problem.federations[cell]
    at = _Cell(settings, programs, problem, federation, cell, key)
    parents = _train(at, store, display)
    seconds = {
        "federated": parents.federated.seconds,
        "local": parents.local.seconds,
        "fine-tuning": parents.fine_tuned.seconds,
    }
    with _timed(seconds, "merge"):
        merges = jax.block_until_ready(_merges(at, parents))
    with _timed(seconds, "evaluation"):
        methods = _methods(at, parents, merges)
        record = {
            "methods": [_row(at, method) for method in methods],
            "diagnostics": _diagnostics(at, parents, merges, methods),
        }
    record["diagnostics"]["seconds"] = seconds
    _keep(store, cell, merges.core.adapter)
    return record


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[name] = time.monotonic() - began


def _keep(store: Store, cell: Cell, adapters: Adapter) -> None:
    save(store.phase(cell, "merged"), Saved(1, adapters, [], 0.0))


# --- Training ------------------------------------------------------------------------


def _train(at: _Cell, store, display) -> _Parents:
    clients = at.settings.clients
    first = at.problem.adapter(at.fold(0))

    def phase(which, start, key):
        return run_phase(
            which,
            start,
            at.problem.base,
            at.federation,
            key,
            cell=at.cell,
            store=store,
            display=display,
        )

    federated = phase(at.programs.federated, stack(first, clients=clients), at.fold(1))
    start = _local_start(at, first, federated.adapters)
    local = phase(at.programs.local, start, at.fold(2))
    tuned = phase(at.programs.fine_tuning, federated.adapters, at.fold(3))
    return _Parents(federated, local, tuned)


def _local_start(at: _Cell, first, federated) -> Adapter:
    clients, how = at.settings.clients, at.settings.local_start
    if how == "federated":
        return federated
    if how == "independent":
        return jax.vmap(at.problem.adapter)(jax.random.split(at.fold(5), clients))
    return stack(first, clients=clients)


# --- Merging -------------------------------------------------------------------------


class _Merges(NamedTuple):
    """Merges and what they were made from; `other` is core on the other samples."""

    factor: Merged
    core: Merged
    other: Merged
    hermite: Merged
    losses: jax.Array
    points: jax.Array


def _merges(at: _Cell, parents: _Parents) -> _Merges:
    own, other = _samples(at), _samples(at, other=True)
    heldout = _heldout(at)
    points = jnp.linspace(0, 1, at.settings.grid_points)
    pair = parents.federated.adapters, parents.local.adapters
    losses = at.programs.curves(at.problem.base, *pair, heldout, points)
    return _Merges(
        factor=_potara(at, "factor", pair, own),
        core=_potara(at, "core", pair, own),
        other=_potara(at, "core", pair, other),
        hermite=at.programs.hermite(at.problem.base, *pair, heldout),
        losses=losses,
        points=points,
    )


def _potara(at: _Cell, space, pair, samples) -> Merged:
    counts, base = at.federation.train.count, at.problem.base
    return at.programs.potara[space](base, *pair, samples, counts, at.fold(4))


def _samples(at: _Cell, *, other: bool = False) -> Samples:
    heldout = (at.settings.curvature_on == "heldout") != other
    return _heldout(at) if heldout else _training(at)


def _heldout(at: _Cell) -> Samples:
    return _gathered(at.federation.pool, at.federation.heldout)


def _training(at: _Cell) -> Samples:
    """The first training examples of every client, whose order is random."""
    number, (index, count) = at.settings.samples, at.federation.train
    index = jnp.pad(index[:, :number], ((0, 0), (0, max(0, number - index.shape[1]))))
    return _gathered(at.federation.pool, Ragged(index, jnp.minimum(count, number)))


def _gathered(pool: Batch, ragged: Ragged) -> Samples:
    return Samples(take(pool, ragged.index), ragged.count)


# --- Methods -------------------------------------------------------------------------


def _methods(at: _Cell, parents: _Parents, merges: _Merges) -> list[Method]:
    """Every row of the table, scored, oracles last."""
    federated, local, tuned = (_cost(at, outcome) for outcome in parents)
    tuned, both = _together(federated, tuned), _together(federated, local)
    pair = parents.federated.adapters, parents.local.adapters
    common = [
        Method("base", _untrained(at), Cost()),
        Method("federated (FedIT)", pair[0], federated),
    ]
    own = [
        Method("local", pair[1], local),
        Method("federated + fine-tuning", parents.fine_tuned.adapters, tuned),
        *_merged_rows(at, pair, merges, both),
    ]
    scored = [m._replace(scores=_score_common(at, m.adapters)) for m in common]
    scored += [m._replace(scores=_score(at, m.adapters)) for m in own]
    ends = scored[2].scores, scored[1].scores
    return scored + _oracles(at, pair, merges.points, ends, both)


def _untrained(at: _Cell) -> Adapter:
    return stack(at.problem.adapter(at.fold(0)), clients=at.settings.clients)


def _merged_rows(at: _Cell, pair, merges: _Merges, cost: Cost) -> list[Method]:
    merge = at.programs.merge
    half = jnp.full(at.settings.clients, 0.5)
    factor, best = merges.factor.weight, grid(merges.losses, merges.points)
    other = "train" if at.settings.curvature_on == "heldout" else "held-out"
    delta, truncated = merge["delta"], merge["truncated"]
    counts = at.federation.train.count
    module = at.programs.module_weights(merges.core.curvature, counts)
    return [
        Method("uniform", delta(*pair, half), cost, half),
        Method("Potara factor", merges.factor.adapter, cost, factor),
        Method("Potara delta", delta(*pair, factor), cost, factor),
        Method("Potara delta, rank r", truncated(*pair, factor), cost, factor),
        Method("Potara core", merges.core.adapter, cost, merges.core.weight),
        Method("Potara core, per module", delta(*pair, module), cost, module),
        Method(
            f"Potara core, {other}", merges.other.adapter, cost, merges.other.weight
        ),
        Method("Hermite segment", merges.hermite.adapter, cost, merges.hermite.weight),
        Method("grid on held-out", delta(*pair, best), cost, best),
    ]


def _oracles(at: _Cell, pair, points, ends, cost: Cost) -> list[Method]:
    """The best constant weight, and the best of each client, on the test examples.

    ends: the scores at both ends of the points, which are the parents'.
    """
    clients, delta = at.settings.clients, at.programs.merge["delta"]
    merged = [delta(*pair, jnp.full(clients, point)) for point in points[1:-1]]
    inner = [_score(at, adapters) for adapters in merged]
    scores = jax.tree.map(lambda *x: jnp.stack(x), ends[0], *inner, ends[1])
    constant = jnp.full(clients, jnp.argmax(scores.accuracy.mean(1)))
    choices = {
        "best constant weight": constant,
        "best weight per client": jnp.argmax(scores.accuracy, 0),
    }
    pick = lambda choice: Scores(*(s[choice, jnp.arange(clients)] for s in scores))
    example = delta(*pair, jnp.zeros(clients))
    return [
        Method(name, example, cost, points[choice], pick(choice), oracle=True)
        for name, choice in choices.items()
    ]


def _score(at: _Cell, adapters: Adapter) -> Scores:
    return at.programs.evaluate(at.shared, adapters, at.federation.test)


def _score_common(at: _Cell, adapters: Adapter) -> Scores:
    """The scores of a model that all clients have: the first client's is looked at."""
    first = jax.tree.map(lambda x: x[0], adapters)
    return at.programs.evaluate_common(at.shared, first, at.federation.test)


def _cost(at: _Cell, outcome: Outcome) -> Cost:
    """What a phase spent; its final models count as received."""
    total = lambda name: sum(record[name] for record in outcome.history)
    down = total("bytes_down") + outcome.final_bytes
    steps = round(total("steps") / at.settings.clients)
    return Cost(total("bytes_up"), down, steps, outcome.seconds)


def _together(first: Cost, second: Cost) -> Cost:
    return Cost(*(a + b for a, b in zip(first, second, strict=True)))


def _row(at: _Cell, method: Method) -> dict:
    accuracy = np.asarray(method.scores.accuracy, np.float64)
    parameters = adapter_parameters(method.adapters)
    return {
        "method": method.name,
        "oracle": method.oracle,
        **at.cell._asdict(),
        "mean": float(accuracy.mean()),
        "worst_decile": worst_decile(accuracy),
        "accuracy": accuracy.tolist(),
        "loss": np.asarray(method.scores.loss, np.float64).tolist(),
        "weights": _listed(method.weight),
        **method.cost._asdict(),
        "inference_parameters": 0 if method.name == "base" else parameters,
    }


def _listed(tree: Any) -> Any:
    return (
        None if tree is None else jax.tree.map(lambda x: np.asarray(x).tolist(), tree)
    )


# --- Diagnostics ---------------------------------------------------------------------


def _diagnostics(at: _Cell, parents, merges: _Merges, methods: list[Method]) -> dict:
    counts = at.federation.train.count
    return {
        **at.cell._asdict(),
        "counts": _listed(counts),
        "proportions": _listed(at.federation.proportions),
        "segment": _segment(at, merges, methods),
        "damping": _damping(at, merges, counts),
        "communication": _communication(at, parents, methods),
        "left_out": _left_out(parents),
    }


def _segment(at: _Cell, merges: _Merges, methods) -> dict:
    named = {m.name: m.weight for m in methods}
    return {
        "points": _listed(merges.points),
        "losses": _listed(merges.losses),
        "chosen": {name: _listed(_mean_weight(named[name])) for name in _MERGED_SHOWN},
        "barrier": _listed(segment_barrier(merges.losses, merges.points)),
    }


def _mean_weight(weight) -> jax.Array:
    """A client's weight, averaged over its modules where they have their own."""
    return jnp.mean(jnp.stack(jax.tree.leaves(weight)), 0)


def _damping(at: _Cell, merges: _Merges, counts) -> dict:
    first, last = _DAMPING_DECADES
    values = jnp.logspace(first, last, 2 * (last - first) + 1)
    if at.settings.damping == "quantile":
        values = jnp.linspace(0, 0.99, 12)
    weights = {
        name: _listed(at.programs.weight_at(merged.curvature, counts, values))
        for name, merged in (("core", merges.core), ("factor", merges.factor))
    }
    chosen = at.settings.damping_value
    return {"values": _listed(values), "weights": weights, "chosen": chosen}


def _left_out(parents: _Parents) -> list[dict]:
    rounds = [record for outcome in parents for record in outcome.history]
    return [
        {"phase": r["phase"], "round": r["round"], "client": client}
        for r in rounds
        for client in r["left_out"]
    ]


def _communication(at: _Cell, parents: _Parents, methods: list[Method]) -> list[dict]:
    """Accuracy against bytes: of FedIT at some rounds, of the merges at two."""
    last = at.settings.federated_rounds
    points = [
        _point(m.name, last, m.cost.bytes_up + m.cost.bytes_down, m.scores)
        for m in methods
        if m.name in ("federated (FedIT)", "federated + fine-tuning", *_MERGED_SHOWN)
    ]
    marks = at.programs.federated.marks[:-1]
    for place, mark in enumerate(marks):
        common = jax.tree.map(lambda x, i=place: x[i], parents.federated.kept)
        federated = stack(common, clients=at.settings.clients)
        models = {"federated (FedIT)": _score_common(at, federated)}
        if place == len(marks) // 2:
            models |= _merged_scores(at, (federated, parents.local.adapters))
        spent = _spent(parents.federated, mark)
        points += [_point(name, mark, spent, s) for name, s in models.items()]
    return points


def _point(name: str, mark: int, spent: int, scores: Scores) -> dict:
    mean = float(scores.accuracy.mean())
    return {"method": name, "round": mark, "bytes": spent, "mean": mean}


def _merged_scores(at: _Cell, pair) -> dict[str, Scores]:
    core = _potara(at, "core", pair, _samples(at))
    segment = at.programs.hermite(at.problem.base, *pair, _heldout(at))
    merged = zip(_MERGED_SHOWN, (core, segment), strict=True)
    return {name: _score(at, m.adapter) for name, m in merged}


def _spent(federated: Outcome, rounds: int) -> int:
    """Bytes of all clients for a model after some rounds, which they then receive."""
    done = federated.history[:rounds]
    return sum(r["bytes_up"] + r["bytes_down"] for r in done) + federated.final_bytes
