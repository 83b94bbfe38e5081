"""Work beside other work: programs two at a time, and files while a round goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

import jax

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    shown: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> list[Result]:
    """`[function(x) for x in items]`, two at a time where the only device is a CPU.

    One is compiled, on one processor, while another is compiled or computed, and the
    results are the same. An accelerator computes one program at a time anyhow, whose
    chunk of clients may need all its memory, and several devices must be given their
    programs in one order.

    Args:
      function: jitted work; if it raises, nothing more is begun.
      items: what it is called with.
      shown: shows as many things as they are iterated over, see `Progress.each`.
    """
    if not _leaves_idle():
        return [function(item) for item in shown(items)]
    with ThreadPoolExecutor(2) as threads:
        begun = [threads.submit(function, item) for item in items]
        try:
            return [one.result() for one in shown(begun)]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _leaves_idle() -> bool:
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    return alone and _processors() > 1


def _processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Beside:
    """Does one thing after another beside what goes on. A context manager."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._begun: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.end()

    def begin(self, work: Callable[[], None]) -> None:
        """Begin the next thing, once that before it is done."""
        self.end()
        self._begun = self._thread.submit(work)

    def end(self) -> None:
        """Wait for what was begun, and raise what it has raised."""
        if self._begun is not None:
            self._begun.result()
