"""How many clients at once: as many as the device's memory has room for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax

from potara_jax.clients.axis import AUTO, Layout

# Of 200 clients of the digits' ViT, 16 at once are 1.4 times as fast as all of them.
_ON_A_CPU = 16
_SHARE = 0.9


def jit_over_clients(
    make: Callable[[Layout], Callable[..., Any]],
    layout: Layout,
    clients: Callable[..., int],
    **how: Any,
) -> Callable[..., Any]:
    """`jax.jit(make(layout), **how)`, in chunks that fit where the layout says `AUTO`.

    The chunk is found at the first call, from what the compiled program says that it
    needs beside its arguments: all clients, 16 at most on a CPU, or as many as there is
    `room` for. clients: their number, from the arguments.
    """
    if layout.chunk != AUTO:
        return jax.jit(make(layout), **how)
    found: list[Callable] = []

    def call(*args):
        if not found:
            most = -(-clients(*args) // layout.devices)
            found.append(_fitting(make, layout, most, args, how))
        return found[0](*args)

    return call


def _fitting(make, layout, chunk: int, args, how) -> Callable:
    if jax.default_backend() == "cpu":
        chunk = min(chunk, _ON_A_CPU)
    while True:
        program = jax.jit(make(layout._replace(chunk=chunk)), **how)
        needed = temporaries(program, *args)
        if needed <= room() or chunk == 1:
            return program
        chunk = min(chunk - 1, max(1, int(chunk * room() / needed)))


def temporaries(program: Callable, *args) -> int:
    """Bytes that a jitted function takes beside its arguments and results."""
    compiled = program.lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def room() -> int:
    """Bytes that are free on the device; of a host, a quarter of its memory."""
    told = jax.local_devices()[0].memory_stats()
    if told and "bytes_limit" in told:
        return int(_SHARE * (told["bytes_limit"] - told["bytes_in_use"]))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
