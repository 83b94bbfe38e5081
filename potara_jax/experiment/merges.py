"""The weights and merges of a cell, each one jitted program over all clients."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter
from potara_jax.experiment import recipes
from potara_jax.experiment.context import Context, Parents, chosen, heldout
from potara_jax.merging import Measured, Samples
from potara_jax.runs.progress import Display


class Merges(NamedTuple):
    """What was measured, by name, and the loss along the segments."""

    measured: dict[str, Measured]
    losses: jax.Array
    points: jax.Array
    interval: tuple[jax.Array, jax.Array]


def make_merges(at: Context, parents: Parents, display: Display) -> Merges:
    """All weights of a cell's federated and local adapters."""
    points = jnp.linspace(0, 1, at.settings.grid_points)
    pair = parents.federated.models, parents.local.models
    curves = at.programs.curves(at.problem.base, *pair, heldout(at), points)
    interval = at.programs.interval(*_clients(at, pair, recipes.CURVATURE))
    measured = {
        name: jax.block_until_ready(measure(at, name, pair))
        for name in display.each(f"{at.cell.name} weights", list(at.programs.weigh))
    }
    for name, derive in at.programs.derived.items():
        found = measured[derive.source].curvature
        weight = derive.program(found, at.federation.train.count)
        measured[name] = Measured(weight, found)
    return Merges(measured, curves, points, interval)


def measure(at: Context, name: str, pair) -> Measured:
    """The weights of one name for a pair of stacked adapters."""
    weigh = at.programs.weigh[name]
    return weigh.program(*_clients(at, pair, weigh.samples))


def merge(at: Context, name: str, pair, weight) -> Adapter:
    """The pair merged in one way with weights `[C, ...]`."""
    clients = _clients(at, pair, recipes.CURVATURE)
    return at.programs.merge[name](*clients, weight)


def _clients(at: Context, pair, samples: str) -> tuple:
    """The arguments of every program over clients."""
    counts = at.federation.train.count
    return (at.problem.base, *pair, _samples(at, samples), counts, at.fold(4))


def _samples(at: Context, which: str) -> Samples:
    if which == recipes.HELDOUT:
        return heldout(at)
    return chosen(at, other=which == recipes.OTHER)
