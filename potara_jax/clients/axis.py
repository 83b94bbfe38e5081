"""The simulated client axis: to clients what `jax.vmap` is to examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax


def over_clients(
    fn: Callable[..., Any],
    *,
    in_axes: int | Sequence[int | None] | None = 0,
    chunk: int | None = None,
) -> Callable[..., Any]:
    """`fn`, written for one client, over a leading axis of clients.

    in_axes: as in `jax.vmap`, but 0 or None only: an argument (a whole pytree) either
      has the client axis, or is one and the same for all clients, such as the base.
      What is shared stays unbatched: its products are one large one over the clients.
    chunk: how many clients are computed at once: memory grows with the chunk, not with
      the number of clients. Default: all of them.
    """

    def mapped(*args):
        axes = in_axes if isinstance(in_axes, Sequence) else (in_axes,) * len(args)
        clients = [arg for arg, axis in zip(args, axes, strict=True) if axis == 0]
        size = _common_size(clients)
        if chunk is None or chunk >= size:
            return jax.vmap(fn, in_axes=tuple(axes))(*args)
        one = lambda batched: fn(*_interleave(args, axes, batched))
        return jax.lax.map(one, clients, batch_size=chunk)

    return mapped


def _common_size(clients) -> int:
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(clients)}
    if len(sizes) != 1:
        found = ", ".join(map(str, sorted(sizes))) or "none"
        raise ValueError(f"arguments must have one number of clients, not {found}")
    return sizes.pop()


def _interleave(args, axes, batched):
    batched = iter(batched)
    return [
        next(batched) if axis == 0 else arg
        for arg, axis in zip(args, axes, strict=True)
    ]
