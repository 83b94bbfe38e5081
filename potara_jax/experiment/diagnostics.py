"""What lies behind a cell's table, for the figures and the report."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from potara_jax.evaluation.metrics import Scores, segment_barrier
from potara_jax.experiment.context import Context, Parents, score
from potara_jax.experiment.federating import epsilon
from potara_jax.experiment.merges import Merges, measure, merge
from potara_jax.experiment.methods import Method, listed
from potara_jax.experiment.phases import Outcome
from potara_jax.experiment.recipes import OWN, SPECIAL

_DECADES = (-4, 2)
_SHOWN = (SPECIAL, OWN)
_SHOWN_DAMPED = (SPECIAL, "potara factor")


def diagnostics(
    at: Context, parents: Parents, merges: Merges, methods: list[Method]
) -> dict:
    """Who holds what, the segments, the damping, the bytes, and who was left out."""
    counts = at.federation.train.count
    return {
        **at.cell._asdict(),
        "counts": listed(counts),
        "proportions": listed(at.federation.proportions),
        "held": at.problem.held._asdict(),
        "segment": _segment(at, merges, methods),
        "damping": _damping(at, merges, counts),
        "certainty": _certainty(at, merges, counts),
        "communication": _communication(at, parents, methods),
        "left_out": _left_out(parents),
        "epsilon": epsilon(at.settings, at.programs.federated, at.problem),
    }


def _segment(at: Context, merges: Merges, methods) -> dict:
    named = {m.name: m.weight for m in methods}
    return {
        "points": listed(merges.points),
        "losses": listed(merges.losses),
        "chosen": {name: listed(_mean_weight(named[name])) for name in _SHOWN},
        "barrier": listed(segment_barrier(merges.losses, merges.points)),
    }


def _mean_weight(weight) -> jax.Array:
    """A client's weight, averaged over its modules where they have their own."""
    return jnp.mean(jnp.stack(jax.tree.leaves(weight)), 0)


def _damping(at: Context, merges: Merges, counts) -> dict:
    first, last = _DECADES
    values = jnp.logspace(first, last, 2 * (last - first) + 1)
    if at.settings.damping == "quantile":
        values = jnp.linspace(0, 0.99, 12)
    curvature = {name: merges.measured[name].curvature for name in _SHOWN_DAMPED}
    weights = {
        name: listed(at.programs.weight_at(found, counts, values))
        for name, found in curvature.items()
    }
    chosen = at.settings.damping_value
    return {"values": listed(values), "weights": weights, "chosen": chosen}


def _certainty(at: Context, merges: Merges, counts) -> dict:
    """How sure Potara's weight is: its bootstrap interval, and what damping moves."""
    moves = at.programs.sensitivity(merges.measured[SPECIAL].curvature, counts)
    low, high = map(listed, merges.interval)
    return {"low": low, "high": high, "moves_in_a_decade": listed(moves)}


def _left_out(parents: Parents) -> list[dict]:
    rounds = [record for outcome in parents for record in outcome.history]
    return [
        {"phase": r["phase"], "round": r["round"], "client": client}
        for r in rounds
        for client in r["left_out"]
    ]


def _communication(at: Context, parents: Parents, methods: list[Method]) -> list[dict]:
    """Accuracy against bytes: of the federated model at some rounds, of the merges."""
    federated, last = parents.federated, at.settings.federated_rounds
    points = [
        _point(at, m.name, last, m.cost.bytes_up + m.cost.bytes_down, m.scores)
        for m in methods
        if m.name in ("federated", "federated + fine-tuning", *_SHOWN)
    ]
    for number, mark in federated.marks.items():
        if number < last:
            spent = bytes_until(federated, number)
            points.append(_point(at, "federated", number, spent, mark.scores))
    for number, models in federated.kept.items():
        if number < last:
            spent = bytes_until(federated, number)
            found = _merged_scores(at, (models, parents.local.models))
            points += [_point(at, name, number, spent, s) for name, s in found.items()]
    return points


def _point(at: Context, name: str, mark: int, spent: int, scores: Scores) -> dict:
    mean = float(scores.accuracy[: at.there].mean())
    return {"method": name, "round": mark, "bytes": spent, "mean": mean}


def _merged_scores(at: Context, pair) -> dict[str, Scores]:
    weights = {name: measure(at, name, pair).weight for name in _SHOWN}
    return {n: score(at, merge(at, "delta", pair, w)) for n, w in weights.items()}


def bytes_until(outcome: Outcome, rounds: int) -> int:
    """Bytes of all clients for a model after some rounds, which they then receive."""
    sent = sum(r["bytes_up"] + r["bytes_down"] for r in outcome.history[:rounds])
    return sent + sum(map(int, outcome.marks[rounds].received))
