"""The median of interleaved runs, and what a program was compiled to."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Point(NamedTuple):
    """A point of a figure's `curve`, in the `panel` of that title."""

    panel: str
    curve: str
    at: float
    value: float


class Line(NamedTuple):
    """A line of the table: a ratio of two measurements of one run.

    `aim`: what the ratio should be, such as `>= 0.7`; empty if there is none. `points`:
    what the figure shows of it.
    """

    what: str
    measured: str
    reference: str
    ratio: float
    aim: str = ""
    points: tuple[Point, ...] = ()

    @property
    def met(self) -> bool | None:
        """Whether the ratio is as aimed at; None without an aim."""
        if not self.aim:
            return None
        sign, bound = self.aim.split()
        return (
            self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)
        )


def seconds(*calls: Callable[[], Any], repeats: int) -> list[float]:
    """The median time of each call, in seconds; all are warm, and take turns.

    Because they take turns, other load on the machine affects all of them equally.
    """
    for call in calls:
        jax.block_until_ready(call())
    times = [[_timed(call) for call in calls] for _ in range(repeats)]
    return np.median(times, axis=0).tolist()


def _timed(call) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def size(tree: Any) -> int:
    """Bytes of all arrays."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def temporary_bytes(function: Callable, *args) -> int:
    """Bytes that a compiled program holds beside its arguments and results."""
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


def has_array(function: Callable, *args, rows: int, columns: int) -> bool:
    """Whether any array of the compiled program ends in `[rows, columns]`."""
    text = jax.jit(function).lower(*args).compile().as_text()
    return re.search(rf"\[(\d+,)*{rows},{columns}\]", text) is not None


def compilations(program: Callable, *calls: tuple) -> int:
    """How many times some calls compile a jitted program; forbids host transfers."""
    jax.block_until_ready(program(*calls[0]))
    with jax.transfer_guard("disallow"):
        for args in calls:
            jax.block_until_ready(program(*args))
    return program._cache_size()


def show_bytes(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def show_seconds(value: float) -> str:
    """Seconds for people."""
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
