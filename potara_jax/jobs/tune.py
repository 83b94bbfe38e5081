"""Step sizes for every federated algorithm.

    potara tune digits

Every algorithm has four trials: learning rates of its clients, or values of another
step size where that matters more. All else is as in its paper. A trial is scored by the
clients' accuracy on held-out examples, after as many rounds as Potara federates, on a
seed that is in no table. The best trials are written to `tuned.json` in the run folder;
what the comparison uses lies in `experiments/tuned.json`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.data.federation import Weighted
from potara_jax.experiment import federating
from potara_jax.experiment.cell import train
from potara_jax.experiment.context import Context
from potara_jax.experiment.phases import Phase
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.settings import check_algorithms
from potara_jax.experiments.digits import Digits
from potara_jax.federated.registry import load_all
from potara_jax.federated.rounds import stack

RATES = (2.5e-3, 5e-3, 1e-2, 2e-2)
_OWN = {  # where a step size of another kind matters more than the clients'
    "scaffold": ("learning_rate", (0.1, 0.3, 1.0, 0.03)),
    "fedadam": ("rate", (0.003, 0.01, 0.03, 0.1)),
    "fedyogi": ("rate", (0.003, 0.01, 0.03, 0.1)),
    "pfedme": ("strength", (0.1, 1.0, 10.0, 100.0)),
}


@dataclasses.dataclass(frozen=True)
class TuneDigits(Digits):
    """A search on held-out examples, of the same size for every algorithm."""

    out: Path = Path("runs/tune-digits")
    """Run folder. A finished search is shown again, an unfinished one is continued."""
    seeds: tuple[int, ...] = (100,)
    """Seeds of the search; not those of any table."""
    algorithms: tuple[str, ...] = ()
    """Algorithms to search for; default: all."""

    def check(self) -> None:
        """As every experiment's, and the algorithms' names."""
        super().check()
        check_algorithms(self)


class Programs(NamedTuple):
    """A phase a trial; `federated` is what every experiment's context has."""

    federated: Phase
    trials: dict[str, list[tuple[dict, Phase]]]


def trials(name: str) -> list[dict]:
    """What is tried for an algorithm: keyword arguments of `federating.make`."""
    own, values = _OWN.get(name, ("local_rate", RATES))
    return [{own: value} for value in values]


def names(settings: TuneDigits) -> list[str]:
    """The algorithms to search for."""
    return [n for n in settings.algorithms or load_all() if n != "local"]


def number_of_rounds(settings: TuneDigits) -> int:
    """Rounds of a cell."""
    return settings.federated_rounds * sum(map(len, map(trials, names(settings))))


def make_programs(settings: TuneDigits, problem: Problem) -> Programs:
    """A phase for every trial."""

    def phase(name: str, place: int, how: dict) -> Phase:
        algorithm = federating.make(settings, problem.task, name, **how)
        title, last = f"{name}-{place}", settings.federated_rounds
        return federating.federated_phase(
            settings, problem, algorithm, name=title, last=last
        )

    found = {
        name: [(how, phase(name, i, how)) for i, how in enumerate(trials(name))]
        for name in names(settings)
    }
    return Programs(next(iter(found.values()))[0][1], found)


def run_cell(cell, settings, programs: Programs, problem, *, store, display) -> dict:
    """Every trial of a cell, scored on held-out examples: its record."""
    federation, key = problem.federations[cell], jax.random.key(cell.seed)
    at = Context(settings, programs, problem, federation, cell, key)
    alike = stack(problem.adapter(at.fold(0)), clients=settings.clients)
    scored = []
    for name, tried in programs.trials.items():
        for how, phase in tried:
            outcome = train(at, store, display, phase, alike, at.fold(1))
            mean = _heldout_accuracy(at, phase, outcome)
            scored.append({"algorithm": name, "trial": how, "mean": mean})
    return {**cell._asdict(), "trials": scored}


def _heldout_accuracy(at: Context, phase: Phase, outcome) -> float:
    index, count, _ = at.federation.heldout
    real = jnp.arange(index.shape[1]) < count[:, None]
    test = Weighted(index, real / jnp.maximum(count[:, None], 1))
    scores = phase.evaluate(outcome.shared, outcome.models, test)
    return float(np.asarray(scores.accuracy, np.float64)[: at.there].mean())


def results(records: list[dict]) -> dict:
    """The mean of every trial over cells, and the best of every algorithm."""
    each = [record["trials"] for record in records]
    means = [
        first | {"mean": float(np.mean([t["mean"] for t in same]))}
        for first, same in zip(each[0], zip(*each, strict=True), strict=True)
    ]
    names = dict.fromkeys(trial["algorithm"] for trial in means)
    own = {n: [t for t in means if t["algorithm"] == n] for n in names}
    best = {n: max(tried, key=lambda t: t["mean"])["trial"] for n, tried in own.items()}
    return {"trials": means, "best": best}
