"""Clients that join a federation after its rounds.

Newcomers simply receive what all clients share. If an algorithm keeps a state on the
client, a newcomer makes one in rounds of its own, against a fixed server, which learns
nothing from them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from potara_jax.data.federation import Federation
from potara_jax.evaluation.metrics import Scores
from potara_jax.experiment.context import Context
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.federating import layout
from potara_jax.experiment.phases import Outcome, Phase, run_phase
from potara_jax.federated import Progress, make_round
from potara_jax.federated.progress import frozen


def joining_phase(experiment: Experiment, phase: Phase) -> Phase | None:
    """The rounds in which newcomers join an algorithm; None without newcomers."""
    if not experiment.participation.newcomers:
        return None
    algorithm = frozen(phase.algorithm)
    return phase._replace(
        name=f"{phase.name}, newcomers",
        round=make_round(algorithm, layout=layout(experiment)),
        rounds=experiment.local.rounds,
        marks=(),
        keep=(),
    )


def welcome(at: Context, joining: Phase | None, outcome: Outcome) -> Outcome:
    """The outcome of a phase, with the models and scores of the clients that joined."""
    if joining is None:
        newcomers = at.experiment.participation.newcomers
        at.progress.skip(at.experiment.local.rounds if newcomers else 0)
        return outcome
    federation = _newcomers(at.federation, at.present)
    server = jax.tree.map(jnp.copy, outcome.progress.server)
    states = jax.tree.map(lambda x: x[at.present :], outcome.progress.states)
    joined = run_phase(
        joining,
        Progress(server, states),
        at.problem.base,
        federation,
        at.key_for("newcomers"),
        cell=at.cell,
        store=at.store,
        display=at.progress,
    )
    scores = joining.score(joined.shared, joined.models, federation.test)
    return _with_newcomers(outcome, joined.models, scores, at.present)


def _newcomers(federation: Federation, present: int) -> Federation:
    def late(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[present:], tree)

    return federation._replace(
        train=late(federation.train),
        heldout=late(federation.heldout),
        test=late(federation.test),
    )


def _with_newcomers(
    outcome: Outcome, models: Any, scores: Scores, present: int
) -> Outcome:
    def put(all_: Any, late: Any) -> Any:
        return jax.tree.map(lambda x, y: x.at[present:].set(y), all_, late)

    marks = {
        number: mark._replace(scores=put(mark.scores, scores))
        for number, mark in outcome.marks.items()
    }
    return outcome._replace(
        models=put(outcome.models, models),
        marks=marks,
        kept={number: put(kept, models) for number, kept in outcome.kept.items()},
    )
