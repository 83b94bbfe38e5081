"""Diagonal Fisher merging."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from potara_jax.adapters.lora import Array
from potara_jax.merging import registry, spaces
from potara_jax.merging.client_curvature import check_curvature_space, client_curvature
from potara_jax.merging.curvature import Curvature
from potara_jax.merging.interface import Client, Estimator, Measured, Weight
from potara_jax.merging.likelihoods import Likelihood

Tree = Any


@registry.weight(
    "fisher",
    needs="likelihood",
    samples="train",
    space="core",
    passes=registry.fisher_passes,
    summary="each parameter by its share of Fisher information",
    reference="arXiv 2111.09832",
    from_curvature=lambda curvature, examples: fisher_weight(curvature),
)
def fisher(
    likelihood: Likelihood,
    *,
    space: str = "core",
    floor: float = 1e-6,
    normalise: bool = True,
    whole: bool = False,
    chunk: int = 10,
) -> Estimator:
    """Diagonal Fisher merging: every parameter's weight is its share of information.

        w = (F_F + floor) / (F_F + F_L + 2 floor)

    Modules that are trained whole, such as a head, are averaged with 1/2 by default: a
    client's samples say nothing about classes that it lacks, so the shares of their
    parameters are noise. For a new head on CIFAR-100, Fisher's shares gave an accuracy
    of 32 %, and 1/2 gave 57 %. Matena and Raffel 2022 (arXiv 2111.09832).

    Args:
      likelihood: which Fisher (`exact`, `empirical`, `sampled`, `empirical_of_loss`).
      space: where curvature is measured; merge in the same space.
      floor: added to every Fisher.
      normalise: divide each model's Fisher by its norm first, so that the sharper model
        does not take everything; the floor is then relative.
      whole: weigh the parameters of modules that are trained whole by their Fisher too.
      chunk: samples differentiated together, to bound memory.

    Raises:
      ValueError: a space without curvature.
    """
    check_curvature_space(space)

    def measure(client: Client) -> Measured:
        curvature = client_curvature(likelihood, client, space=space, chunk=chunk)
        weight = fisher_weight(curvature, floor=floor, normalise=normalise, whole=whole)
        return Measured(weight, curvature)

    return Estimator("fisher", measure)


def fisher_weight(
    curvature: Curvature,
    *,
    floor: float = 1e-6,
    normalise: bool = True,
    whole: bool = False,
) -> Weight:
    """Weights of diagonal Fisher merging, one a coordinate; see `fisher`."""
    paths = [
        path
        for path, entry in curvature.federated.items()
        if whole or spaces.stands_for_delta(entry)
    ]
    fishers = [{p: f[p] for p in paths} for f in (curvature.federated, curvature.local)]
    federated, local = map(_unit, fishers) if normalise else fishers

    def share(f: Array, other: Array) -> Array:
        return (f + floor) / (f + other + 2 * floor)

    half = jax.tree.map(lambda x: jnp.full_like(x, 0.5), curvature.federated)
    return half | jax.tree.map(share, federated, local)


def _unit(tree: Tree) -> Tree:
    """A pytree over its norm."""
    length = optax.tree.norm(tree)
    return jax.tree.map(lambda x: x / jnp.where(length > 0, length, 1), tree)
