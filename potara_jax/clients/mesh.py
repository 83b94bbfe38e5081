"""Meshes of devices and hosts: clients over one axis, a large base over the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

CLIENTS, MODEL = "clients", "model"


def make_mesh(devices: Sequence[jax.Device] | None = None, *, model: int = 1) -> Mesh:
    """Make a mesh with the axes `clients` and `model`.

    Args:
      devices: default: all devices of all hosts.
      model: the number of devices over which a base is split, see `split_base`.

    Raises:
      ValueError: `model` does not divide the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if model < 1 or len(devices) % model:
        raise ValueError(
            f"a base cannot be split over {model} of {len(devices)} devices: "
            "choose a divisor"
        )
    grid = np.asarray(devices).reshape(-1, model)
    return Mesh(grid, (CLIENTS, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def everywhere(mesh: Mesh, tree: Any) -> Any:
    """Copy arrays to every device of a mesh.

    Arrays that are on the mesh stay as they are, so a base stays split.

    Args:
      mesh: the devices.
      tree: the arrays, equal on all hosts.
    """

    def place(x: Any) -> Any:
        on_mesh = getattr(getattr(x, "sharding", None), "mesh", None) == mesh
        return x if on_mesh else put(x, replicated(mesh))

    return jax.tree.map(place, tree)


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Place arrays, equal on all hosts, on a mesh over all hosts."""
    return jax.tree.map(lambda x: _put(x, sharding), tree)


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    on_host = not isinstance(x, jax.Array) or x.is_fully_addressable
    if sharding.is_fully_addressable or not on_host:
        return jax.device_put(x, sharding)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        words = _put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    whole_x = np.asarray(x)  # whose equality `device_put` would check in every call
    return jax.make_array_from_callback(x.shape, sharding, lambda at: whole_x[at])


def whole(x: Any) -> np.ndarray:
    """An array as NumPy has it, also one that is spread over hosts.

    Every host calls it, as the others send their parts.
    """
    here = not isinstance(x, jax.Array) or x.is_fully_addressable
    at_hand = here or x.is_fully_replicated
    return np.asarray(x if at_hand else process_allgather(x, tiled=True))


def by_client(mesh: Mesh, clients: int) -> NamedSharding:
    """The sharding of an array with a leading axis of clients.

    Every device holds all clients if the devices do not divide their number.

    Args:
      mesh: the devices.
      clients: their number.
    """
    remainder = clients % mesh.shape[CLIENTS]
    return replicated(mesh) if remainder else NamedSharding(mesh, P(CLIENTS))


def split_base(base: Any, mesh: Mesh) -> Any:
    """Split a base's arrays over the mesh axis `model`.

    Each is split along its longest axis that the devices divide; one without such an
    axis is copied to every device. With `model` of 1, all are copied.

    Args:
      base: the arrays, equal on all hosts.
      mesh: the devices.
    """
    size = mesh.shape[MODEL]

    def place(x: Any) -> Any:
        divisible = [n if n % size == 0 and size > 1 else 0 for n in np.shape(x)]
        if not any(divisible):
            return put(x, replicated(mesh))
        longest = int(np.argmax(divisible))
        spec = [MODEL if axis == longest else None for axis in range(len(divisible))]
        return put(x, NamedSharding(mesh, P(*spec)))

    return jax.tree.map(place, base)
