"""Programs that compute as many clients at once as the device's memory allows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from potara_jax import memory
from potara_jax.clients.axis import AUTO, Layout
from potara_jax.clients.compiling import jit

# Of 200 clients of the digits' ViT, 16 at once are 1.4 times as fast as all of them.
_MAX_ON_CPU = 16
# A program for 4,096 clients of a ViT-S/14 at once takes minutes to be compiled.
_FIRST = 128

_Make = Callable[[Layout], Callable[..., Any]]
_Donated = int | tuple[int, ...]


def jit_over_clients(
    make: _Make,
    layout: Layout,
    clients: Callable[..., int],
    *,
    donate_argnums: _Donated = (),
) -> Callable[..., Any]:
    """`jit(make(layout))`, with the largest chunk that fits if it is `AUTO`.

    The first call finds the chunk from the memory that the compiled program needs
    on top of its arguments. It tries all clients, or at most 16 on a CPU and 128
    elsewhere, and smaller chunks until one needs at most what is free. Where 128
    leave room for more, it goes on with as many as should fit. If the device runs out
    of memory all the same, because that which is free is in pieces, it tries half as
    many; not so where arguments are donated, since these are lost.

    Args:
      make: makes the function for a layout.
      layout: the number of clients computed at once, and the devices.
      clients: the number of clients, from the function's arguments.
      donate_argnums: as in `jax.jit`.

    Returns:
      The compiled function.
    """
    if layout.chunk != AUTO:
        return jit(make(layout), donate_argnums=donate_argnums)
    programs: list[Callable[..., Any]] = []

    def call(*args: Any) -> Any:
        if programs:
            return programs[0](*args)
        chunk = -(-clients(*args) // layout.devices)
        while True:
            fitted = fit(make, layout, chunk, args, donate_argnums=donate_argnums)
            try:
                result = jax.block_until_ready(fitted.program(*args))
            except jax.errors.JaxRuntimeError as error:
                if not _can_be_tried_again(error, fitted.chunk, donate_argnums):
                    raise
                chunk = fitted.chunk // 2
            else:
                programs.append(fitted.program)
                return result

    return call


def _can_be_tried_again(error: Exception, chunk: int, donated: _Donated) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) and chunk > 1 and donated == ()


class Fitted(NamedTuple):
    """A compiled program, and what it takes.

    Attributes:
      program: compiled for a number of clients at once.
      chunk: that number.
      needed: bytes on top of its arguments.
    """

    program: Callable[..., Any]
    chunk: int
    needed: int


def fit(
    make: _Make,
    layout: Layout,
    chunk: int,
    args: tuple[Any, ...],
    *,
    donate_argnums: _Donated = (),
) -> Fitted:
    """The program with the largest chunk that fits the memory which is free.

    Args:
      make: makes the function for a layout.
      layout: the devices.
      chunk: the largest that is tried; on a CPU it is 16 at most.
      args: of the function.
      donate_argnums: as in `jax.jit`.
    """
    if jax.default_backend() == "cpu":
        chunk = min(chunk, _MAX_ON_CPU)
    compiled = partial(_fitting, make, layout, args, donate_argnums)
    first = compiled(min(chunk, _FIRST))
    more = min(chunk, first.chunk * memory.free_on_device() // max(first.needed, 1))
    return compiled(more) if first.chunk == _FIRST < more else first


def _fitting(
    make: _Make, layout: Layout, args: tuple[Any, ...], donated: _Donated, chunk: int
) -> Fitted:
    """The program with a chunk, or with the next smaller one that fits."""
    while True:
        fn = make(layout._replace(chunk=chunk))
        program = jit(fn, donate_argnums=donated)
        needed = _on_top_of_arguments(program, *args)
        if needed <= memory.free_on_device() or chunk == 1:
            return Fitted(program, chunk, needed)
        chunk = min(chunk - 1, max(1, int(chunk * memory.free_on_device() / needed)))


def temporaries(program: Any, *args: Any) -> int:
    """Bytes that a jitted function needs on top of its arguments and results."""
    compiled = program.lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def _on_top_of_arguments(program: Any, *args: Any) -> int:
    """Bytes of temporaries and of results that take no argument's place."""
    needed = program.lower(*args).compile().memory_analysis()
    results = needed.output_size_in_bytes - needed.alias_size_in_bytes
    return needed.temp_size_in_bytes + results
