"""What lies behind a cell's table, for the figures and the report."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from experiments.context import Context, Parents, score, score_common
from experiments.merges import Merges, measure, merge
from experiments.methods import Method, listed
from experiments.phases import Outcome
from experiments.recipes import OWN, SPECIAL
from potara_jax.evaluation.metrics import Scores, segment_barrier
from potara_jax.federated.rounds import stack

_DECADES = (-4, 2)
_SHOWN = (SPECIAL, OWN)
_SHOWN_DAMPED = {"core": SPECIAL, "factor": "potara factor"}


def diagnostics(
    at: Context, parents: Parents, merges: Merges, methods: list[Method]
) -> dict:
    """Who holds what, the segments, the damping, the bytes, and who was left out."""
    counts = at.federation.train.count
    return {
        **at.cell._asdict(),
        "counts": listed(counts),
        "proportions": listed(at.federation.proportions),
        "segment": _segment(at, merges, methods),
        "damping": _damping(at, merges, counts),
        "certainty": _certainty(at, merges, counts),
        "communication": _communication(at, parents, methods),
        "left_out": _left_out(parents),
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
    curvature = {n: merges.measured[m].curvature for n, m in _SHOWN_DAMPED.items()}
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
    """Accuracy against bytes: of FedIT at some rounds, of the merges at two."""
    last = at.settings.federated_rounds
    points = [
        _point(m.name, last, m.cost.bytes_up + m.cost.bytes_down, m.scores)
        for m in methods
        if m.name in ("federated (FedIT)", "federated + fine-tuning", *_SHOWN)
    ]
    marks = at.programs.federated.marks[:-1]
    for place, mark in enumerate(marks):
        common = jax.tree.map(lambda x, i=place: x[i], parents.federated.kept)
        federated = stack(common, clients=at.settings.clients)
        models = {"federated (FedIT)": score_common(at, federated)}
        if place == len(marks) // 2:
            models |= _merged_scores(at, (federated, parents.local.adapters))
        spent = _spent(parents.federated, mark)
        points += [_point(name, mark, spent, s) for name, s in models.items()]
    return points


def _point(name: str, mark: int, spent: int, scores: Scores) -> dict:
    mean = float(scores.accuracy.mean())
    return {"method": name, "round": mark, "bytes": spent, "mean": mean}


def _merged_scores(at: Context, pair) -> dict[str, Scores]:
    weights = {name: measure(at, name, pair).weight for name in _SHOWN}
    return {n: score(at, merge(at, "delta", pair, w)) for n, w in weights.items()}


def _spent(federated: Outcome, rounds: int) -> int:
    """Bytes of all clients for a model after some rounds, which they then receive."""
    done = federated.history[:rounds]
    return sum(r["bytes_up"] + r["bytes_down"] for r in done) + federated.final_bytes
