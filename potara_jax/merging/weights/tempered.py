"""Weights from the loss along the segment at one temperature for all clients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from potara_jax.adapters.lora import Array
from potara_jax.merging import curves, registry, segment
from potara_jax.merging.curves import Curves
from potara_jax.merging.interface import Client, Estimator, Measured
from potara_jax.merging.likelihoods import Logits
from potara_jax.merging.registry import Work
from potara_jax.merging.segment import POINTS

_POINTS, _STEPS = 11, 10


def _passes(work: Work) -> float:
    """A forward pass a point."""
    del work
    return _POINTS / 3


@registry.weight(
    "tempered_bayes",
    needs="logits",
    samples="heldout",
    passes=_passes,
    summary="posterior mean of the tempered loss along the segment",
    reference="this project",
)
def tempered_bayes(logits: Logits, *, curve_points: int = _POINTS) -> Estimator:
    """The posterior mean weight of the loss along the segment, at one temperature.

    (1) A client's cross-entropy of `logits / T`, at `curve_points` weights `w` and
    eleven temperatures `T`. (2) One `T` for all: that of the least mean loss over all
    clients and samples, at the weight where it is least. (3) The cubic spline `l_c(w)`
    of a client's loss at that `T`. (4) The mean of the posterior `exp(-N l_c(w)) p(w)`,
    with the prior `p` that all clients' losses suggest (empirical Bayes, ten steps of
    EM). A client without samples takes the mean of the prior.

    With the posterior's interval, and whether a client gains, see `curves.gains`. The
    temperature is that of a label's likelihood: for answers of several tokens, of
    a token's. Each client sends `11 (curve_points + 6) + 1` numbers.

    Args:
      logits: `(base, adapter, examples) -> [N, ..., K]`.
      curve_points: the number of weights at which the curve is measured.

    Raises:
      ValueError: fewer than four points, which have no cubic spline.
    """

    def decide(measured: Curves, counts: Array) -> Measured:
        del counts
        return _bayes(*curves.tempered(measured))

    return Estimator("tempered_bayes", _measure(logits, curve_points), decide)


@registry.weight(
    "mix",
    needs="logits",
    samples="heldout",
    passes=_passes,
    summary="mean of tempered_bayes and of the minimum of a shrunk curve",
    reference="this project",
)
def mix(logits: Logits, *, curve_points: int = _POINTS) -> Estimator:
    """The mean of `tempered_bayes` and of a minimum, that of a shrunk curve.

    Both come from the same measurements; see `curves.shrunk` for the curve, which is
    drawn to the pooled one.

    Args:
      logits: `(base, adapter, examples) -> [N, ..., K]`.
      curve_points: the number of weights at which the curve is measured.

    Raises:
      ValueError: fewer than four points.
    """

    def decide(measured: Curves, counts: Array) -> Measured:
        del counts
        chosen, fine = curves.tempered(measured)
        points = jnp.linspace(0, 1, POINTS)
        least = segment.grid(curves.shrunk(chosen, fine), points)
        bayes = _bayes(chosen, fine)
        return Measured((bayes.weight + least) / 2, gains=bayes.gains)

    return Estimator("mix", _measure(logits, curve_points), decide)


def _measure(logits: Logits, points: int) -> Callable[[Client], Curves]:
    if points < 4:
        raise ValueError(f"curve_points is {points}: a cubic spline needs 4 or more")
    return partial(curves.measure, logits, points=points)


def _bayes(chosen: Curves, fine: Array) -> Measured:
    log_likelihood = -chosen.count[:, None] * fine
    posterior = segment.posteriors(log_likelihood, steps=_STEPS)
    return segment.of_posteriors(posterior)._replace(gains=curves.gains(chosen))
