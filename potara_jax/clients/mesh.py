"""Devices and hosts: clients over one axis of them, a large base over another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

CLIENTS, MODEL = "clients", "model"


def make_mesh(devices: Sequence[jax.Device] | None = None, *, model: int = 1) -> Mesh:
    """A mesh `(clients, model)` of devices; default: all, of all hosts.

    model: over how many devices a base is split, see `split_base`. Raises `ValueError`
    where it does not divide the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if model < 1 or len(devices) % model:
        raise ValueError(
            f"a base cannot be split over {model} of {len(devices)} devices: "
            "take a divisor"
        )
    grid = np.asarray(devices).reshape(-1, model)
    return Mesh(grid, (CLIENTS, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """One and the same on all devices."""
    return NamedSharding(mesh, P())


def everywhere(mesh: Mesh, tree: Any) -> Any:
    """Arrays on all devices of a mesh; those that lie on it already stay as they are.

    So a base that `split_base` has split stays split.
    """

    def place(x):
        there = getattr(getattr(x, "sharding", None), "mesh", None) == mesh
        return x if there else put(x, replicated(mesh))

    return jax.tree.map(place, tree)


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays, which all hosts have alike, on the devices of a mesh over all hosts."""
    return jax.tree.map(lambda x: _put(x, sharding), tree)


def _put(x, sharding):
    here = not isinstance(x, jax.Array) or x.is_fully_addressable
    if sharding.is_fully_addressable or not here:
        return jax.device_put(x, sharding)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        words = _put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    return jax.device_put(np.asarray(x), sharding)


def by_client(mesh: Mesh, clients: int) -> NamedSharding:
    """A leading axis of clients over the devices; whole where it does not split."""
    whole = clients % mesh.shape[CLIENTS]
    return replicated(mesh) if whole else NamedSharding(mesh, P(CLIENTS))


def split_base(base: Any, mesh: Mesh) -> Any:
    """A base's arrays over the axis `model`, each along its longest axis that splits.

    What does not split is on every device. Where `model` is 1 that is all of it.
    """
    size = mesh.shape[MODEL]

    def place(x):
        splits = [n if n % size == 0 and size > 1 else 0 for n in np.shape(x)]
        if not any(splits):
            return put(x, replicated(mesh))
        spec = [None] * len(splits)
        spec[int(np.argmax(splits))] = MODEL
        return put(x, NamedSharding(mesh, P(*spec)))

    return jax.tree.map(place, base)
