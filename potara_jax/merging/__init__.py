"""Merging LoRA adapters: curvature, weights in closed form, and merges."""

from potara_jax.merging.curvature import (
    Curvature,
    empirical,
    exact,
    sampled,
)
from potara_jax.merging.merges import merge, truncate
from potara_jax.merging.programs import (
    Merged,
    Samples,
    hermite_merge,
    loss_curves,
    potara,
    segment_loss,
)
from potara_jax.merging.weights import (
    Traces,
    closed_form,
    grid,
    harmonic,
    hermite,
    laplace,
    potara_weight,
    quantile,
    relative,
    variance_traces,
)

__all__ = [
    "Curvature",
    "Merged",
    "Samples",
    "Traces",
    "closed_form",
    "empirical",
    "exact",
    "grid",
    "harmonic",
    "hermite",
    "hermite_merge",
    "laplace",
    "loss_curves",
    "merge",
    "potara",
    "potara_weight",
    "quantile",
    "relative",
    "sampled",
    "segment_loss",
    "truncate",
    "variance_traces",
]
