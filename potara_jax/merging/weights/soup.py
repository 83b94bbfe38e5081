"""Greedy soup."""

from __future__ import annotations

from potara_jax.merging import registry, segment
from potara_jax.merging.interface import Estimator, Measured
from potara_jax.merging.likelihoods import Loss

_POINTS = 3  # both models and their mean: a forward pass each


@registry.weight(
    "soup",
    needs="loss",
    samples="heldout",
    passes=lambda work: _POINTS / 3,
    summary="the better model, or the mean of both (greedy soup)",
    reference="arXiv 2203.05482",
)
def soup(loss: Loss) -> Estimator:
    """Greedy soup: the better model, or the mean of both if that is better still.

    Wortsman et al. 2022 (arXiv 2203.05482).
    """
    return Estimator(
        "soup", lambda client: Measured(segment.grid_weight(loss, client, _POINTS))
    )
