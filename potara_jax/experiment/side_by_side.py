"""Work beside other work: programs two at a time, and files while a round goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, Self, TypeVar

import jax

from potara_jax import memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    shown: Callable[[Sequence[Item]], Iterable[Item]] = iter,
) -> list[Result]:
    """`[function(x) for x in items]`, two at a time where the only device is a CPU.

    One is compiled, on one processor, while another is compiled or computed, and the
    results are the same. They are computed one by one where that is no gain, or not
    safe: on an accelerator, whose memory one program may need; on several devices,
    which must be given programs in one order; where the host has less memory free than
    the process has needed so far; and under settings of JAX that hold in one thread
    alone, as within `jax.enable_x64()`.

    Args:
      function: jitted work; once it raises, nothing more is begun.
      items: what it is called with.
      shown: shows items as they are iterated over, see `Progress.each`.
    """
    with ThreadPoolExecutor(2) as threads:
        if not _leaves_idle() or _settings() != threads.submit(_settings).result():
            return [function(item) for item in shown(items)]
        begun = [threads.submit(function, item) for item in items]
        try:
            for _, one in zip(shown(items), as_completed(begun), strict=True):
                one.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return [one.result() for one in begun]


def _leaves_idle() -> bool:
    """Whether one program leaves a processor idle, and memory for another."""
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    has_room = memory.free_on_host() > memory.peak()["process"]
    return alone and has_room and _processors() > 1


def _processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _settings() -> dict[str, Any]:
    """JAX's settings in this thread."""
    return {name: getattr(jax.config, name, None) for name in jax.config.values}


class Beside:
    """Does one thing after another beside what goes on. A context manager.

    What a thing raises is raised when the next one begins, or at the end.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._begun: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._thread.shutdown()
        except KeyboardInterrupt:  # a second one: what is written is written whole
            self._thread.shutdown()
            raise
        self.end()

    def begin(self, work: Callable[[], None]) -> None:
        """Begin the next thing, once that before it is done."""
        self.end()
        self._begun = self._thread.submit(work)

    def end(self) -> None:
        """Wait for what was begun."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.result()
