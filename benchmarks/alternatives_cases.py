"""Trials of merge weights beside the default one, each on models trained once.

Each case gives rows: a name, and a value of one federation. A regret is accuracy minus
that of the best constant weight on the test examples, in points; a number before a name
is that of held-out samples. What each asks stands in `docs/method.md`, below "What the
bound assumes, and where that fails".

Letters: `C` clients, `N` samples, `P` points, `T` temperatures, `W` weights of the fine
grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from potara_jax import merging
from potara_jax.adapters.lora import Adapter
from potara_jax.data.federation import Ragged, take
from potara_jax.experiment.cell import (
    ParentPhases,
    local_start,
    parent_phases,
    train,
    train_parents,
)
from potara_jax.experiment.context import Context
from potara_jax.experiment.label_prior import as_set
from potara_jax.experiment.merges import Pair, measure, program_arguments
from potara_jax.experiment.methods import potara
from potara_jax.experiment.rows import score
from potara_jax.jobs import study
from potara_jax.merging import Client, Samples, curves, segment
from potara_jax.merging.curves import TEMPERATURES, Curves

NUMBERS = 5, 10, 30, 100  # of held-out samples
POINTS, STEPS = 11, 10  # of the default weight: points of a curve, and steps of EM
FOLDS = 4
SPREADS = 0.02, 0.05, 0.1, 0.2, 0.4, 0.8  # of priors over weights
Rows = Iterator[tuple[str, float]]


class Trained(NamedTuple):
    """A federation whose models are trained.

    Attributes:
      at: the cell.
      phases: which train its models.
      models: federated and local ones, as they were trained.
      pair: the same as the experiment merges them.
      curve: accuracy at equally spaced weights, `[P, C]`.
    """

    at: Context
    phases: ParentPhases
    models: Pair
    pair: Pair
    curve: np.ndarray

    def program(self, name: str, one: Callable[..., Any]) -> Callable[..., Any]:
        """`one(client, *more)` over all clients, compiled once for all federations."""
        make = lambda: merging.over_each(one, layout=self.at.programs.layout)
        return self.at.programs.once(("alternatives", name), make)

    def arguments(self, number: int) -> tuple[Any, ...]:
        """A program's arguments, with the first held-out samples of each client."""
        return study.arguments_of(self.at, self.pair, "heldout", number)

    def curves(self, arguments: tuple[Any, ...]) -> Curves:
        """What clients send for the default weight."""
        logits = self.at.problem.task.logits
        one = lambda client: curves.measure(logits, client, POINTS)
        return self.program("curves", one)(*arguments)

    def default(self, measured: Curves) -> jax.Array:
        """The default's weights from that, `[C]`."""
        decide = merging.tempered_bayes(self.at.problem.task.logits).decide
        return decide(measured, measured.count).weight

    def regret(self, weight: Any) -> float:
        """That of clients' weights `[C]`, read off their curves as in a study."""
        read = study.read_off(np.asarray(weight), self.curve)
        return 100 * float(read.mean() - self.curve.mean(1).max())

    def regret_of(self, adapters: Adapter) -> float:
        """That of merged adapters `[C, ...]`."""
        accuracy = np.asarray(score(self.at, adapters).accuracy, np.float64)
        return 100 * float(accuracy.mean() - self.curve.mean(1).max())

    def regret_by_module(self, weight: dict[str, jax.Array]) -> float:
        """That of weights by module, `{path: [C]}`."""
        program = self.program("merge by module", merged)
        return self.regret_of(program(*self.arguments(1), weight))


def merged(client: Client, weight: Any) -> Adapter:
    """A client's models merged, with one weight or with one a module."""
    return merging.merge((client.federated, client.local), merging.pair(weight))


def trained(at: Context) -> Trained:
    """Train both models of a federation as its experiment has them."""
    phases = at.programs.once("parents", lambda: parent_phases(at))
    federated, local = (outcome.models for outcome in train_parents(at, phases))
    pair = as_set(at, (federated, local))
    curve = study.curve_of(at, pair, "delta").accuracy
    return Trained(at, phases, (federated, local), pair, curve)


# --- Losses on training examples that the local models have left out -----------------


def crossfit(ready: Trained) -> Rows:
    """Whether losses on training examples will do if local models leave them out.

    Each of four local models leaves out a quarter, on which the loss is then read; the
    federated model has seen all. See "Losses have assumptions as well".
    """
    examples = ready.at.federation.train
    folds = [split(examples, fold) for fold in range(FOLDS)]
    left_out = [_left_out(ready, kept, out) for kept, out in folds]
    heldout = ready.curves(ready.arguments(30))
    every = {
        "training examples, left out": together(left_out),
        "training examples": _on_training(ready, ready.pair, examples),
        "held-out samples, 30": heldout,
    }
    for name, measured in every.items():
        yield name, ready.regret(ready.default(measured))


def split(examples: Ragged, fold: int) -> tuple[Ragged, Ragged]:
    """Every client's examples outside a fold, and those in it."""
    index, place = np.asarray(examples.index), np.arange(examples.index.shape[1])
    real = place < np.asarray(examples.count)[:, None]

    def only(chosen: np.ndarray) -> Ragged:
        order = np.argsort(~chosen, 1, kind="stable")
        first = np.take_along_axis(index, order, 1)
        return Ragged(jnp.asarray(first), jnp.asarray(chosen.sum(1), jnp.int32))

    inside = place % FOLDS == fold
    return only(real & ~inside), only(real & inside)


def _left_out(ready: Trained, kept: Ragged, out: Ragged) -> Curves:
    """The curves of examples that new local models are not trained on.

    All folds start and draw with the same keys, so that they differ by the data alone.
    """
    at = ready.at
    fewer = {at.cell: at.federation._replace(train=kept)}
    on_fewer = at._replace(problem=at.problem._replace(federations=fewer))
    first = at.problem.adapter(at.key_for("adapter"))
    begin = local_start(at, first, ready.models[0])
    local = train(on_fewer, ready.phases.local, begin, at.key_for("local")).models
    return _on_training(ready, as_set(at, (ready.models[0], local)), out)


def _on_training(ready: Trained, pair: Pair, some: Ragged) -> Curves:
    samples = Samples(take(ready.at.federation.pool, some.index), some.count)
    return ready.curves(program_arguments(ready.at, pair, samples))


def together(parts: list[Curves]) -> Curves:
    """The curves of all samples, from those of disjoint parts of them."""
    counts = jnp.stack([part.count for part in parts])
    share = counts / jnp.maximum(counts.sum(0), 1)
    mean = lambda *x: jnp.einsum("kc,kc...->c...", share, jnp.stack(x))
    return jax.tree.map(mean, *parts)._replace(count=counts.sum(0))


# --- Potara's weight as a prior ------------------------------------------------------


def prior(ready: Trained) -> Rows:
    """Whether Potara's weight knows something that a client's held-out losses do not.

    Normal priors are around one mean for all clients, around Potara's weights, or
    around these shifted by one number; each with the mean, shift and spread of the
    highest marginal likelihood. See "What tempering and empirical Bayes repair".
    """
    at, shifts = ready.at, np.linspace(-1, 1, 81)[:, None]
    of_potara = np.asarray(measure(at, potara(at.experiment), ready.pair).weight)
    centres = {
        "one mean": np.full_like(of_potara, of_potara.mean()) + shifts,
        "Potara's": of_potara[None],
        "Potara's, shifted": of_potara + shifts,
    }
    for number in NUMBERS:
        measured = ready.curves(ready.arguments(number))
        yield f"{number} default", ready.regret(ready.default(measured))
        chosen, fine = curves.tempered(measured)
        likelihood = -np.asarray(chosen.count[:, None] * fine, np.float64)
        found = {name: normal(likelihood, x) for name, x in centres.items()}
        for name, (_, weight) in found.items():
            yield f"{number} {name}", ready.regret(jnp.asarray(weight, jnp.float32))
        evidence = {name: log for name, (log, _) in found.items()}
        for name in ("Potara's", "Potara's, shifted"):
            better = float(evidence["one mean"] > evidence[name])
            yield f"{number} share where one mean is likelier than {name}", better


def normal(likelihood: np.ndarray, centres: np.ndarray) -> tuple[float, np.ndarray]:
    """The highest log marginal likelihood of normal priors, and posterior means `[C]`.

    Args:
      likelihood: logarithms on a grid of [0, 1], `[C, W]`.
      centres: of the priors that are compared, each at every spread, `[G, C]`.
    """
    at, spreads = np.linspace(0, 1, likelihood.shape[1]), np.array(SPREADS)
    off = (at - centres[..., None]) / spreads[:, None, None, None]
    joint = likelihood + special.log_softmax(-(off**2) / 2, -1)
    evidence = special.logsumexp(joint, -1).sum(-1)
    best = np.unravel_index(evidence.argmax(), evidence.shape)
    return float(evidence[best]), special.softmax(joint[best], -1) @ at


# --- A third adapter -----------------------------------------------------------------


def neighbour(ready: Trained) -> Rows:
    """Whether the local model of the client with the nearest class shares helps.

    On a simplex of 66 points: the best constant weights, those of the least pooled loss
    of 30 samples, and the posterior means; beside them the same on the segment. See
    "A third adapter adds nothing here".
    """
    others = nearest(np.asarray(ready.at.federation.proportions))
    third = jax.tree.map(lambda x: x[others], ready.pair[1])
    points, arguments = simplex(), ready.arguments(30)
    one = partial_losses(ready.at.problem.task.logits, points)
    losses = ready.program("simplex", one)(*arguments, third)
    counts = arguments[3].count.astype(jnp.float32)

    def regret(weights: Any) -> float:
        if not np.any(weights[:, 2]):
            return ready.regret(weights[:, 0])
        args = *ready.arguments(1), third, jnp.asarray(weights, jnp.float32)
        return ready.regret_of(ready.program("merge of three", _of_three)(*args))

    every = [regret(np.tile(point, (len(others), 1))) for point in points]
    pooled = int(tempered(losses, counts)[0].argmin())
    yield "best constant weights", max(every)
    yield "neighbour's best weight", float(points[np.argmax(every)][2])
    yield "30 least pooled loss", every[pooled]
    yield "30 neighbour's weight there", float(points[pooled][2])
    yield "30 posterior, simplex", regret(posterior_means(losses, counts, points))
    flat = points[:, 2] == 0
    on_segment = posterior_means(losses[:, flat], counts, points[flat])
    yield "30 posterior, segment", regret(on_segment)


def nearest(proportions: np.ndarray) -> np.ndarray:
    """The other client with the most similar class shares `[C, K]`, of each, `[C]`."""
    apart = np.abs(proportions[:, None] - proportions).sum(-1)
    np.fill_diagonal(apart, np.inf)
    return apart.argmin(1)


def simplex(steps: int = 10) -> np.ndarray:
    """Weights of three adapters, `[P, 3]`; those without the third come first."""
    every = itertools.product(range(steps + 1), repeat=3)
    points = np.array([point for point in every if sum(point) == steps])
    return points[np.argsort(points[:, 2], kind="stable")] / steps


def partial_losses(logits: Any, points: np.ndarray) -> Callable[..., jax.Array]:
    """A client's mean losses at the points and at every temperature, `[P, T]`."""

    def losses(client: Client, third: Adapter) -> jax.Array:
        share = client.weight / jnp.maximum(client.weight.sum(), 1)

        def at(point: jax.Array) -> jax.Array:
            merged = _of_three(client, third, point)
            outputs = logits(client.base, merged, client.examples)
            one = partial(curves.cross_entropy, outputs, client.examples[1])
            return jax.lax.map(one, jnp.asarray(TEMPERATURES)) @ share

        return jax.lax.map(at, jnp.asarray(points, jnp.float32))

    return losses


def _of_three(client: Client, third: Adapter, weight: jax.Array) -> Adapter:
    return merging.merge((client.federated, client.local, third), list(weight))


def tempered(losses: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pooled and clients' losses, `[P]` and `[C, P]`, at the default's temperature."""
    pooled = jnp.einsum("c,cpt->pt", counts / counts.sum(), losses)
    best = pooled.min(0).argmin()
    return pooled[:, best], losses[..., best]


def posterior_means(losses: jax.Array, counts: jax.Array, points: Any) -> jax.Array:
    """Weights under a prior over the points from all clients, `[C, 3]`; see (6)."""
    likelihood = -counts[:, None] * tempered(losses, counts)[1]
    return segment.posteriors(likelihood, steps=STEPS) @ points


# --- The temperature -----------------------------------------------------------------


def temperature(ready: Trained) -> Rows:
    """Whether the temperature may be that of the whole segment, on average.

    The default's is that of the best weight. See "What tempering and empirical Bayes
    repair".
    """
    for number in NUMBERS:
        measured = ready.curves(ready.arguments(number))
        pooled = jnp.einsum("c,ctp->tp", measured.count, measured.loss)
        every = {"best weight": pooled.min(1), "average": pooled.mean(1)}
        for name, losses in every.items():
            best = slice(int(losses.argmin()), int(losses.argmin()) + 1)
            one = [x[:, best] for x in measured[:3]]
            weight = ready.default(Curves(*one, measured.count))
            yield f"{number} right at the {name}", ready.regret(weight)
            yield f"{number} temperature, {name}", TEMPERATURES[best.start]
