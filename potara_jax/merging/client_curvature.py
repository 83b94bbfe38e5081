"""A client's curvature, in the space and the factorisation of one's choice."""

from __future__ import annotations

from collections.abc import Callable

from potara_jax.adapters.lora import Adapter, Array
from potara_jax.merging.curvature import Curvature, curvature
from potara_jax.merging.interface import Client
from potara_jax.merging.kronecker import kronecker
from potara_jax.merging.likelihoods import Example, Likelihood
from potara_jax.merging.spaces import SPACES

_FACTORISATIONS: dict[str, Callable[..., Curvature]] = {
    "diagonal": curvature,
    "kronecker": kronecker,
}
_SPACES = ("core", "factor", "knots", "aligned")


def check_curvature_space(space: str) -> None:
    """Raise `ValueError` for a space in which gradients are not taken."""
    if space not in _SPACES:
        raise ValueError(
            f"no curvature in space '{space}': choose from {list(_SPACES)}"
        )


def client_curvature(
    likelihood: Likelihood,
    client: Client,
    *,
    space: str,
    factorisation: str = "diagonal",
    chunk: int = 10,
) -> Curvature:
    """The curvature of a client's two models on its samples; see `curvature`."""
    coordinates = SPACES[space].coordinates((client.federated, client.local))

    def at(theta: Adapter, example: Example, key: Array) -> tuple[Array, Array]:
        return likelihood(client.base, coordinates.assemble(theta), example, key)

    return _FACTORISATIONS[factorisation](
        at,
        *coordinates.thetas,
        client.examples,
        client.weight,
        client.key,
        chunk=chunk,
        used=coordinates.used,
    )
