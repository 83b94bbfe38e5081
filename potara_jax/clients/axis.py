"""The simulated client axis: to clients what `jax.vmap` is to examples.

Dimension letters: `C` clients, `N` clients with padding, `D` devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from potara_jax.clients.mesh import CLIENTS

Array = jax.Array
AUTO = "auto"


class Layout(NamedTuple):
    """How clients are laid out: how many at once, and over which devices.

    chunk: the most clients that a device computes at once: memory grows with the chunk,
      not with the number of clients. Chunks are made equal, so it may be fewer.
      Default: all of them. `AUTO`: as many as fit, where `jit_over_clients` is used.
    mesh: devices, as `mesh.make_mesh` gives them; default: one.
    """

    chunk: int | Literal["auto"] | None = None
    mesh: Mesh | None = None

    @property
    def devices(self) -> int:
        """Into how many parts the clients are split."""
        return self.mesh.shape[CLIENTS] if self.mesh else 1


AT_ONCE = Layout()


def over_clients(
    fn: Callable[..., Any],
    *,
    in_axes: int | Sequence[int | None] | None = 0,
    layout: Layout = AT_ONCE,
    work: Callable[..., Array] | None = None,
) -> Callable[..., Any]:
    """`fn`, written for one client, over a leading axis of clients.

    in_axes: as in `jax.vmap`, but 0 or None only: an argument (a whole pytree) either
      has the client axis, or is one and the same for all clients, such as the base.
      What is shared stays unbatched: its products are one large one over the clients.
    work: `work(*args) -> [C]`, how much each client has to do, where `fn` has loops of
      different lengths: clients of like work are computed together, and all devices
      have alike to do. Default, and where it gives None: as the clients come.

    Where the clients do not fill chunks and devices evenly, some are computed twice.
    """

    def mapped(*args):
        axes = in_axes if isinstance(in_axes, Sequence) else (in_axes,) * len(args)
        clients = [arg for arg, axis in zip(args, axes, strict=True) if axis == 0]
        size = _common_size(clients)
        plan = plan_of(size, layout)
        run = _on_devices(_in_chunks(fn, axes, plan.chunk), axes, layout.mesh)
        effort = None if work is None else work(*args)
        if plan.padded == size and (effort is None or plan.padded == plan.chunk):
            return run(*args)
        order, place = _dealt(effort, size, plan.padded, layout.devices)
        dealt = jax.tree.map(lambda x: x[order], clients)
        result = run(*_interleave(args, axes, dealt))
        return jax.tree.map(lambda x: x[place], result)

    return mapped


class Plan(NamedTuple):
    """Clients with padding, over all devices, and in a chunk."""

    padded: int
    chunk: int


def plan_of(clients: int, layout: Layout) -> Plan:
    """Equal chunks, of as many clients as the layout allows, for all devices."""
    devices = layout.devices
    block = -(-clients // devices)
    rounds = -(-block // min(layout.chunk or block, block))
    chunk = -(-block // rounds)
    return Plan(devices * rounds * chunk, chunk)


def overhead(work: Array, layout: Layout) -> Array:
    """What is computed over what is needed, for clients dealt by their work `[C]`.

    All clients of a chunk take as long as the longest of them; 1 is no waste.
    """
    plan = plan_of(len(work), layout)
    order, _ = _dealt(work, len(work), plan.padded, layout.devices)
    longest = work[order].reshape(-1, plan.chunk).max(1)
    return plan.chunk * longest.sum() / work.sum()


def _in_chunks(fn, axes, chunk):
    def run(*args):
        clients = [arg for arg, axis in zip(args, axes, strict=True) if axis == 0]
        if 1 < _common_size(clients) == chunk:
            return jax.vmap(fn, in_axes=tuple(axes))(*args)
        one = lambda own: fn(*_interleave(args, axes, own))
        return jax.lax.map(one, clients, batch_size=chunk if chunk > 1 else None)

    return run


def _on_devices(run, axes, mesh):
    if mesh is None:
        return run
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=tuple(P(CLIENTS) if axis == 0 else P() for axis in axes),
        out_specs=P(CLIENTS),
        axis_names={CLIENTS},
        check_vma=False,
    )


def _dealt(work, size: int, padded: int, devices: int) -> tuple[Array, Array]:
    """Which client is computed where `[N]`, and where each one is `[C]`.

    The least work is repeated as padding, and each device gets every `D`-th client in
    the order of work, so that both devices and chunks are alike.
    """
    if work is None:
        return jnp.arange(padded) % size, jnp.arange(size)
    order = jnp.argsort(work)
    first = padded - size
    all_ = jnp.concatenate([jnp.repeat(order[:1], first), order])
    place = jnp.arange(padded).reshape(devices, -1).T.ravel()
    dealt = all_.reshape(-1, devices).T.ravel()
    return dealt, jnp.zeros(size, place.dtype).at[order].set(place[first:])


def _common_size(clients) -> int:
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(clients)}
    if len(sizes) != 1:
        found = ", ".join(map(str, sorted(sizes))) or "none"
        raise ValueError(f"arguments must have one number of clients, not {found}")
    return sizes.pop()


def _interleave(args, axes, own):
    own = iter(own)
    return [
        next(own) if axis == 0 else arg for arg, axis in zip(args, axes, strict=True)
    ]
