"""Weights from the cubic through both ends of the segment between two models.

Two passes, each with a Jacobian-vector product: as many as four forward passes.
"""

from __future__ import annotations

from collections.abc import Callable

from potara_jax.adapters.lora import Array
from potara_jax.merging import registry, segment
from potara_jax.merging.interface import Client, Estimator, Measured
from potara_jax.merging.likelihoods import Loss
from potara_jax.merging.registry import Work


def _passes(work: Work) -> float:
    del work
    return 4 / 3


@registry.weight(
    "hermite",
    needs="loss",
    samples="heldout",
    passes=_passes,
    summary="minimum of the cubic through both ends of the segment",
    reference="this project",
)
def hermite(loss: Loss) -> Estimator:
    """The minimum of the cubic through both ends of the segment; two passes."""
    cubic = _cubic(loss)

    def measure(client: Client) -> Measured:
        return Measured(segment.minimise(cubic(client)))

    return Estimator("hermite", measure)


@registry.weight(
    "hermite_pooled",
    needs="loss",
    samples="heldout",
    passes=_passes,
    summary="one weight: the minimum of all clients' mean cubic",
    reference="this project",
)
def hermite_pooled(loss: Loss) -> Estimator:
    """The minimum of the mean of all clients' cubics: one weight for all."""

    def decide(cubics: segment.Cubic, counts: Array) -> Measured:
        return Measured(segment.pooled(cubics, counts))

    return Estimator("hermite_pooled", _cubic(loss), decide)


@registry.weight(
    "hermite_bayes",
    needs="loss",
    samples="heldout",
    passes=_passes,
    summary="posterior mean under a prior from all clients' cubics",
    reference="this project",
)
def hermite_bayes(loss: Loss) -> Estimator:
    """The posterior mean weight, under a prior from all clients' cubics.

    With its interval; see `segment.empirical_bayes`.
    """

    def decide(cubics: segment.Cubic, counts: Array) -> Measured:
        return segment.empirical_bayes(cubics, counts)

    return Estimator("hermite_bayes", _cubic(loss), decide)


def _cubic(loss: Loss) -> Callable[[Client], segment.Cubic]:
    return lambda client: segment.hermite(segment.segment_loss(loss, client))
