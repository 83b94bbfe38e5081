"""The merges of a cell, each one jitted program over all clients."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.context import Context, Parents, chosen, heldout
from potara_jax.merging import Merged, Samples


class Merges(NamedTuple):
    """Merges and what they were made from; `other` is core on the other samples."""

    factor: Merged
    core: Merged
    other: Merged
    hermite: Merged
    losses: jax.Array
    points: jax.Array


def make_merges(at: Context, parents: Parents) -> Merges:
    """All merges of a cell's federated and local adapters."""
    points = jnp.linspace(0, 1, at.settings.grid_points)
    pair = parents.federated.adapters, parents.local.adapters
    return Merges(
        factor=potara_merge(at, "factor", pair, chosen(at)),
        core=potara_merge(at, "core", pair, chosen(at)),
        other=potara_merge(at, "core", pair, chosen(at, other=True)),
        hermite=at.programs.hermite(at.problem.base, *pair, heldout(at)),
        losses=at.programs.curves(at.problem.base, *pair, heldout(at), points),
        points=points,
    )


def potara_merge(at: Context, space: str, pair, samples: Samples) -> Merged:
    """Potara's merge of a pair of stacked adapters, curvature measured in a space."""
    counts, base = at.federation.train.count, at.problem.base
    return at.programs.potara[space](base, *pair, samples, counts, at.fold(4))
