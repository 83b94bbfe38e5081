"""Diagnostics of a cell, for the figures and the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from potara_jax import merging
from potara_jax.adapters.lora import Adapter
from potara_jax.clients.compiling import jit
from potara_jax.evaluation.metrics import Scores, segment_barrier
from potara_jax.experiment.context import Context
from potara_jax.experiment.federating import epsilon
from potara_jax.experiment.label_prior import as_set
from potara_jax.experiment.merges import Merges, combine, measure, potara_of
from potara_jax.experiment.methods import (
    EXACT,
    POTARA,
    Weighing,
    default_method,
    potara,
)
from potara_jax.experiment.phases import Phase, account_until
from potara_jax.experiment.rows import (
    TUNED,
    Parents,
    Row,
    as_lists,
    cost,
    score,
)
from potara_jax.merging.damping import DAMPINGS

_DECADES = (-4, 2)


def _shown(at: Context) -> dict[str, Weighing]:
    """The weights that the segments and the communication show, by row."""
    default = default_method(at.experiment, at.problem.task)
    return {POTARA: potara_of(at), default.name: default.weighing}


def diagnostics(
    at: Context, federated: Phase, parents: Parents, merges: Merges, rows: list[Row]
) -> dict[str, Any]:
    """Who holds what, the segments, the damping, the bytes, and who was left out."""
    return {
        **at.cell._asdict(),
        "counts": as_lists(at.federation.train.count),
        "proportions": as_lists(at.federation.proportions),
        "held": at.problem.held(*at.cell)._asdict(),
        "segment": _segment(at, merges, rows),
        "damping": _damping(at, merges),
        "certainty": _certainty(at, merges),
        "communication": _communication(at, parents, rows),
        "label_prior": _label_prior(merges),
        "left_out": _left_out(parents),
        "epsilon": epsilon(at.experiment, federated),
    }


def _segment(at: Context, merges: Merges, rows: list[Row]) -> dict[str, Any]:
    weights = {row.name: row.weight for row in rows}
    return {
        "points": as_lists(merges.points),
        "losses": as_lists(merges.losses),
        "chosen": {name: as_lists(_mean_weight(weights[name])) for name in _shown(at)},
        "barrier": as_lists(segment_barrier(merges.losses, merges.points)),
    }


def _mean_weight(weight: Any) -> jax.Array:
    """A client's weight, averaged over modules if each has one."""
    return jnp.mean(jnp.stack(jax.tree.leaves(weight)), 0)


def _damping(at: Context, merges: Merges) -> dict[str, Any]:
    """Potara's weights at every damping, in both spaces."""
    first, last = _DECADES
    values = jnp.logspace(first, last, 2 * (last - first) + 1)
    if at.experiment.merging.damping == "quantile":
        values = jnp.linspace(0, 0.99, 12)
    program = at.programs.once("weights by damping", lambda: _by_damping(at))
    weights = {
        weighing.title: as_lists(
            program(
                merges.measured[weighing].curvature, at.federation.train.count, values
            )
        )
        for weighing in (potara(at.experiment), potara(at.experiment, "factor"))
    }
    chosen = at.experiment.merging.damping_value
    return {"values": as_lists(values), "weights": weights, "chosen": chosen}


def _by_damping(at: Context) -> Callable[..., jax.Array]:
    """Weights `[D, C]` from curvature, at damping values `[D]`."""
    damping = DAMPINGS[at.experiment.merging.damping]

    def weights(
        curvature: merging.Curvature, examples: jax.Array, values: jax.Array
    ) -> jax.Array:
        def one(value: Any) -> jax.Array:
            weigh = jax.vmap(lambda c, n: merging.potara_weight(c, damping(value), n))
            return weigh(curvature, examples)

        return jax.lax.map(one, values)

    return jit(weights)


def _certainty(at: Context, merges: Merges) -> dict[str, Any]:
    """How certain Potara's weight is: bootstrap interval, and effect of the damping."""
    program = at.programs.once("sensitivity", lambda: _sensitivity(at))
    measured = merges.measured[potara_of(at)]
    assert measured.interval is not None, "it was measured with its bootstrap"
    moves = program(measured.curvature, at.federation.train.count)
    low, high = map(as_lists, measured.interval)
    return {"low": low, "high": high, "moves_in_a_decade": as_lists(moves)}


def _sensitivity(at: Context) -> Callable[..., jax.Array]:
    settings = at.experiment.merging
    damping, value = DAMPINGS[settings.damping], settings.damping_value
    return jit(jax.vmap(lambda c, n: merging.sensitivity(c, damping, value, n)))


def _label_prior(merges: Merges) -> dict[str, Any] | None:
    """The calibrated loss on held-out samples, without and with the correction of the
    federated model, and whether the merges have it.
    """
    if merges.prior is None:
        return None
    plain, corrected = map(as_lists, merges.prior.losses)
    return {"plain": plain, "corrected": corrected, "used": merges.prior.used}


def _left_out(parents: Parents) -> list[dict[str, Any]]:
    rounds = [record for outcome in parents for record in outcome.history]
    return [
        {"phase": r["phase"], "round": r["round"], "client": client}
        for r in rounds
        for client in r["left_out"]
    ]


# --- Communication -------------------------------------------------------------------


def _communication(at: Context, parents: Parents, rows: list[Row]) -> list[dict]:
    """Accuracy against bytes: of the federated model at some rounds, of the merges."""
    federated, last = parents.federated, at.experiment.federated.rounds
    points = [
        _point(at, r.name, last, r.cost.bytes, r.scored)
        for r in rows
        if r.name in ("federated", TUNED, *_shown(at))
    ]
    for number, mark in federated.marks.items():
        if number < last:
            spent = cost(at, account_until(federated, number)).bytes
            points.append(_point(at, "federated", number, spent, mark.scores))
    for number, models in federated.kept.items():
        if number < last:
            spent = cost(at, account_until(federated, number)).bytes
            scores = _merged_scores(at, as_set(at, (models, parents.local.models)))
            points += [_point(at, n, number, spent, s) for n, s in scores.items()]
    return points


def _point(
    at: Context, name: str, mark: int, spent: int, scores: Scores
) -> dict[str, Any]:
    mean = float(scores.accuracy[: at.present].mean())
    return {"method": name, "round": mark, "bytes": spent, "mean": mean}


def _merged_scores(at: Context, pair: tuple[Adapter, Adapter]) -> dict[str, Scores]:

    def scores(weighing: Weighing) -> Scores:
        weight = measure(at, weighing, pair).weight
        return score(at, combine(at, EXACT, pair, weight))

    shown = _shown(at)
    found = at.each("scores of earlier models", scores, list(shown.values()))
    return dict(zip(shown, found, strict=True))
