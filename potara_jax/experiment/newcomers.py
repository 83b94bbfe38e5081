"""Clients that join a federation after its rounds.

What all clients have alike they simply receive. Where an algorithm keeps something of
its own on a client, a newcomer makes it in rounds of its own, against the server as it
is, which learns nothing from them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from potara_jax.evaluation.metrics import Scores
from potara_jax.experiment.context import Context
from potara_jax.experiment.federating import layout
from potara_jax.experiment.phases import Outcome, Phase, run_phase
from potara_jax.experiment.settings import Settings
from potara_jax.federated.conditions import EVERYBODY
from potara_jax.federated.rounds import Progress, frozen, make_round
from potara_jax.federated.wire import AS_IT_IS


def joining_phase(settings: Settings, phase: Phase) -> Phase | None:
    """The rounds in which newcomers join an algorithm; None where there are none."""
    if not settings.newcomers:
        return None
    algorithm = frozen(phase.algorithm)
    return phase._replace(
        name=f"{phase.name}, newcomers",
        algorithm=algorithm,
        round=make_round(algorithm, layout=layout(settings)),
        rounds=settings.local_rounds,
        marks=(),
        keep=(),
        conditions=EVERYBODY,
        wire=AS_IT_IS,
    )


def welcome(at: Context, joining: Phase | None, outcome: Outcome, store, display):
    """The outcome of a phase, with the models and scores of the clients that joined."""
    if joining is None:
        display.skip(at.settings.local_rounds if at.settings.newcomers else 0)
        return outcome
    there = at.there
    late = lambda tree: jax.tree.map(lambda x: x[there:], tree)
    server = jax.tree.map(jnp.copy, outcome.progress.server)
    progress = Progress(server, late(outcome.progress.states))
    pool, train, heldout, test = (
        at.federation.pool,
        *map(late, (at.federation.train, at.federation.heldout, at.federation.test)),
    )
    federation = at.federation._replace(
        pool=pool, train=train, heldout=heldout, test=test
    )
    joined = run_phase(
        joining,
        progress,
        at.problem.base,
        federation,
        at.fold(6),
        cell=at.cell,
        store=store,
        display=display,
    )
    scores = joining.evaluate(joined.shared, joined.models, test)
    return _with_newcomers(outcome, joined.models, scores, there)


def _with_newcomers(outcome: Outcome, models, scores: Scores, there: int) -> Outcome:
    put = lambda all_, own: jax.tree.map(lambda x, y: x.at[there:].set(y), all_, own)
    marks = {
        number: mark._replace(scores=put(mark.scores, scores))
        for number, mark in outcome.marks.items()
    }
    return outcome._replace(
        models=put(outcome.models, models),
        marks=marks,
        kept={number: put(kept, models) for number, kept in outcome.kept.items()},
    )
