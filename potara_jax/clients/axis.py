"""The simulated client axis: to clients what `jax.vmap` is to examples.

Dimension letters: `C` clients, `N` clients after padding, `D` devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from potara_jax.clients.mesh import CLIENTS

Array = jax.Array
AUTO: Final = "auto"


class Layout(NamedTuple):
    """How many clients are computed at once, and on which devices.

    Attributes:
      chunk: the maximum number of clients that a device computes at once. Memory grows
        with the chunk, not with the number of clients. Chunks are equal, so they may be
        smaller. Default: all clients. `AUTO`, for `jit_over_clients`: as many as fit.
      mesh: the devices, see `mesh.make_mesh`; default: one.
    """

    chunk: int | Literal["auto"] | None = None
    mesh: Mesh | None = None

    @property
    def devices(self) -> int:
        """The number of devices over which the clients are split."""
        return self.mesh.shape[CLIENTS] if self.mesh else 1


AT_ONCE = Layout()

_Function = Callable[..., Any]
_Axes = Sequence[int | None]


def over_clients(
    fn: Callable[..., Any],
    *,
    in_axes: int | Sequence[int | None] | None = 0,
    layout: Layout = AT_ONCE,
    work: Callable[..., Array] | None = None,
) -> Callable[..., Any]:
    """Map `fn`, written for one client, over a leading axis of clients.

    If the clients do not fill chunks and devices evenly, some are computed twice.

    Args:
      fn: a function of one client.
      in_axes: 0 or None for each argument, or one for all. An argument (a whole pytree)
        either has the client axis or is shared by all clients, such as the base. Shared
        arguments stay unbatched, so a product with one is a single large product.
      layout: the number of clients computed at once, and the devices.
      work: `work(*args) -> [C]`, the work of each client, for a `fn` whose loops differ
        in length. Clients with similar work are computed together, which balances the
        work over devices. Without it, or if it returns None, the clients keep their
        order.

    Returns:
      The function of all clients.
    """

    def mapped(*args: Any) -> Any:
        axes = in_axes if isinstance(in_axes, Sequence) else (in_axes,) * len(args)
        clients = _clients_of(args, axes)
        size = _common_size(clients)
        plan = _plan(size, layout)
        run = _on_devices(_in_chunks(fn, axes, plan.chunk), axes, layout.mesh)
        client_work = None if work is None else work(*args)
        if plan.padded == size and (client_work is None or plan.padded == plan.chunk):
            return run(*args)
        order, place = _deal(client_work, size, plan.padded, layout.devices)
        dealt = jax.tree.map(lambda x: x[order], clients)
        result = run(*_with_clients(args, axes, dealt))
        return jax.tree.map(lambda x: x[place], result)

    return mapped


def overhead(work: Array, layout: Layout) -> Array:
    """The work computed over the work needed; 1 means no waste.

    All clients of a chunk take as long as the longest of them.

    Args:
      work: `[C]`, of each client, by which they are dealt as in `over_clients`.
      layout: the number of clients computed at once, and the devices.
    """
    plan = _plan(len(work), layout)
    order, _ = _deal(work, len(work), plan.padded, layout.devices)
    longest = work[order].reshape(-1, plan.chunk).max(1)
    return plan.chunk * longest.sum() / work.sum()


class _Plan(NamedTuple):
    """The number of clients after padding, and in a chunk."""

    padded: int
    chunk: int


def _plan(clients: int, layout: Layout) -> _Plan:
    """Equal chunks for all devices, as large as the layout allows."""
    if layout.chunk == AUTO:
        raise ValueError("chunk is 'auto': use jit_over_clients, or give a number")
    devices = layout.devices
    block = -(-clients // devices)
    rounds = -(-block // min(layout.chunk or block, block))
    chunk = -(-block // rounds)
    return _Plan(devices * rounds * chunk, chunk)


def _in_chunks(fn: _Function, axes: _Axes, chunk: int) -> _Function:
    def run(*args: Any) -> Any:
        clients = _clients_of(args, axes)
        if 1 < _common_size(clients) == chunk:
            return jax.vmap(fn, in_axes=tuple(axes))(*args)

        def one(client: list[Any]) -> Any:
            return fn(*_with_clients(args, axes, client))

        return jax.lax.map(one, clients, batch_size=chunk if chunk > 1 else None)

    return run


def _on_devices(run: _Function, axes: _Axes, mesh: Mesh | None) -> _Function:
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


def _deal(
    work: Array | None, size: int, padded: int, devices: int
) -> tuple[Array, Array]:
    """The client computed in each place `[N]`, and the place of each client `[C]`.

    The client with the least work is repeated as padding. Each device gets every `D`-th
    client in the order of work, so that devices do similar work and so do the clients
    of a chunk.
    """
    if work is None:
        return jnp.arange(padded) % size, jnp.arange(size)
    order = jnp.argsort(work)
    padding = padded - size
    sorted_ = jnp.concatenate([jnp.repeat(order[:1], padding), order])
    place = jnp.arange(padded).reshape(devices, -1).T.ravel()
    dealt = sorted_.reshape(-1, devices).T.ravel()
    return dealt, jnp.zeros(size, place.dtype).at[order].set(place[padding:])


def _clients_of(args: Sequence[Any], axes: _Axes) -> list[Any]:
    """The arguments with the client axis."""
    return [arg for arg, axis in zip(args, axes, strict=True) if axis == 0]


def _with_clients(args: Sequence[Any], axes: _Axes, clients: list[Any]) -> list[Any]:
    """All arguments, with others in place of those with the client axis."""
    rest = iter(clients)
    return [
        next(rest) if axis == 0 else arg for arg, axis in zip(args, axes, strict=True)
    ]


def _common_size(clients: Sequence[Any]) -> int:
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(clients)}
    if len(sizes) != 1:
        numbers = ", ".join(map(str, sorted(sizes))) or "none"
        raise ValueError(f"arguments must have one number of clients, not {numbers}")
    return sizes.pop()
