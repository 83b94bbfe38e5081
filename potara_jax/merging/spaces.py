"""Spaces in which two adapters are compared and merged.

A space gives both adapters coordinates, and builds an adapter from coordinates:

`factor`  the factors themselves: what the paper's appendix measures and merges. The
          composed delta is quadratic in them, and they depend on their gauge.
`core`    the matrix between the two deltas' joint bases: `delta = left m right`. The
          delta is linear in `m`, without loss, and `m` does not see the gauge.

Modules that are trained whole are their own coordinates in either space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Adapter, is_factors


class Coordinates(NamedTuple):
    """Two adapters in one space.

    `federated`, `local`: coordinates, as pytrees keyed by module path.
    `assemble`: coordinates to the adapter that they stand for.
    """

    federated: Adapter
    local: Adapter
    assemble: Callable[[Adapter], Adapter]


def factor(federated: Adapter, local: Adapter) -> Coordinates:
    """The factors as they are."""
    return Coordinates(federated, local, lambda theta: theta)


def core(federated: Adapter, local: Adapter) -> Coordinates:
    """The cores `m` in the joint principal bases of the two deltas."""
    basis = algebra.map_factors(_basis, federated, local)

    def project(adapter: Adapter) -> Adapter:
        return {
            path: {"m": algebra.coordinates(algebra.Basis(**basis[path]), entry)}
            if path in basis
            else entry
            for path, entry in adapter.items()
        }

    def assemble(theta: Adapter) -> Adapter:
        return {
            path: _around(basis[path], entry) if path in basis else entry
            for path, entry in theta.items()
        }

    return Coordinates(project(federated), project(local), assemble)


def _basis(federated, local):
    return algebra.joint_basis(federated, local)._asdict()


def _around(basis, entry):
    return {"a": basis["left"], "m": entry["m"], "b": basis["right"]}


SPACES: dict[str, Callable[[Adapter, Adapter], Coordinates]] = {
    "factor": factor,
    "core": core,
}


def plain(adapter: Adapter) -> Adapter:
    """The adapter with every core multiplied into its left factor."""
    return {
        path: algebra.plain(entry) if is_factors(entry) else entry
        for path, entry in adapter.items()
    }
