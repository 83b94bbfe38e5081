"""The linear merge `w F + (1 - w) L` of a federated and a local adapter.

    factor   the factors are averaged:   a = w a_F + (1-w) a_L,  b likewise. Rank R.
             Not linear in the delta: exact - factor = w (1-w) (a_F-a_L)(b_F-b_L).
    delta    the deltas are averaged, exactly, by concatenation. Rank 2R, or truncated.
    core     the cores are averaged, exactly. Rank 2R, or truncated.

`delta` and `core` build the same function from one weight; only `core` can also weigh
every parameter on its own. Weights are scalars (one a client), dictionaries by module
path, or pytrees like the coordinates. Everything is for one client; `jax.vmap` gives
the client axis.
"""

from __future__ import annotations

import jax

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Adapter, Array, is_factors
from potara_jax.merging import spaces

Weight = Array | float | dict[str, Array] | Adapter

MERGES = ("factor", "delta", "core")


def merge(
    federated: Adapter,
    local: Adapter,
    weight: Weight,
    *,
    space: str = "core",
    rank: int | None = None,
) -> Adapter:
    """`weight * federated + (1 - weight) * local`, in a space.

    weight: of the federated adapter, usually in [0, 1]: a scalar, one scalar a module
      (`{path: w}`), or one a coordinate (in `factor` and `core`).
    space: `factor`, `delta` or `core`; see the module.
    rank: truncate every merged delta to this rank (Eckart-Young); default: keep the
      exact rank, `R` in `factor` and `2R` otherwise.

    Raises `ValueError` for an unknown space and for a rank that does not fit.
    """
    if space not in MERGES:
        raise ValueError(f"unknown merge space '{space}': choose from {list(MERGES)}")
    weights = per_module(weight, federated)
    if space == "delta":
        merged = _concatenate(federated, local, weights)
    else:
        merged = blend(spaces.SPACES[space](federated, local), weights)
    return merged if rank is None else truncate(merged, rank=rank)


def per_module(weight: Weight, adapter: Adapter) -> dict[str, Weight]:
    """The weight of every module, from any of the forms that `merge` accepts."""
    if isinstance(weight, dict):
        return weight
    return dict.fromkeys(adapter, weight)


def blend(coordinates: spaces.Coordinates, weights: dict[str, Weight]) -> Adapter:
    """The linear mix of two adapters' coordinates, as an adapter of plain factors."""
    federated, local = coordinates.federated, coordinates.local
    mixed = {path: _mix(federated[path], local[path], weights[path]) for path in local}
    return spaces.plain(coordinates.assemble(mixed))


def _mix(federated, local, weight):
    if not isinstance(weight, dict):
        weight = dict.fromkeys(federated, weight)
    return jax.tree.map(
        lambda f, own, w: w * f + (1 - w) * own, federated, local, weight
    )


def _concatenate(federated, local, weights) -> Adapter:
    return {
        path: algebra.concatenate(
            _scaled(federated[path], weights[path]), _scaled(entry, 1 - weights[path])
        )
        if is_factors(entry)
        else _mix(federated[path], entry, weights[path])
        for path, entry in local.items()
    }


def _scaled(entry, weight):
    return {"a": weight * entry["a"], "b": entry["b"]}


def truncate(adapter: Adapter, *, rank: int) -> Adapter:
    """Every delta at the nearest point of a rank; whole modules are kept."""
    whole = {path: entry for path, entry in adapter.items() if not is_factors(entry)}
    return whole | algebra.map_factors(
        lambda entry: algebra.truncate(entry, rank=rank), adapter
    )
