"""Grid search over the merge weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Array
from potara_jax.merging import registry, segment
from potara_jax.merging.interface import Client, Estimator, Measured
from potara_jax.merging.likelihoods import Loss
from potara_jax.merging.registry import Work


def _passes(work: Work) -> float:
    """A forward pass a point."""
    return work.points / 3


@registry.weight(
    "grid",
    needs="loss",
    samples="heldout",
    passes=_passes,
    summary="the best of a grid on the samples",
    reference="-",
)
def grid(loss: Loss, *, points: int = 21) -> Estimator:
    """The best of `points` equally spaced weights on the samples."""
    return Estimator(
        "grid", lambda client: Measured(segment.grid_weight(loss, client, points))
    )


@registry.weight(
    "grid_pooled",
    needs="loss",
    samples="heldout",
    passes=_passes,
    summary="one weight: the best of a grid on all clients' samples",
    reference="-",
)
def grid_pooled(loss: Loss, *, points: int = 21) -> Estimator:
    """The best of `points` weights for all clients on all their samples."""
    at = jnp.linspace(0, 1, points)

    def measure(client: Client) -> Array:
        return jax.lax.map(segment.segment_loss(loss, client), at)

    def decide(losses: Array, counts: Array) -> Measured:
        losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
        counted = (counts > 0) & jnp.isfinite(losses).any(-1)
        share = (counts / counts.sum())[:, None]
        mean = jnp.where(counted[:, None], share * losses, 0).sum(0)
        return Measured(jnp.full(counts.shape, segment.grid(mean, at)))

    return Estimator("grid_pooled", measure, decide)
