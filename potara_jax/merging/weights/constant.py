"""One given weight."""

from __future__ import annotations

import jax.numpy as jnp

from potara_jax.merging import registry
from potara_jax.merging.interface import Client, Estimator, Measured


@registry.weight(
    "constant",
    needs="nothing",
    samples="none",
    passes=lambda work: 0.0,
    summary="a given weight",
    reference="-",
)
def constant(weight: float = 0.5) -> Estimator:
    """One given weight; no sample is looked at."""

    def measure(client: Client) -> Measured:
        return Measured(jnp.full_like(client.weight[0], weight))

    return Estimator("constant", measure)
