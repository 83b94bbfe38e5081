"""Progress: a bar on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import jax
from rich import progress as bars
from rich.console import Console

_SECONDS_BETWEEN_LINES = 10.0
_TASK = bars.TaskID(0)  # the bar's only one
Item = TypeVar("Item")


class Progress(Protocol):
    """How a run reports its progress."""

    def log(self, text: str) -> None:
        """A line that stays."""

    def skip(self, rounds: int) -> None:
        """Rounds that were done in an earlier start."""

    def round(self, name: str, loss: float | None) -> None:
        """One round is done: its name, and its mean training loss, if it has one."""

    def end_cell(self) -> None:
        """All of a cell is done, also what is no round."""

    def each(self, name: str, items: Sequence[Item]) -> Iterator[Item]:
        """Items that are no rounds, one by one."""


class Silent:
    """Shows nothing; lines for the user go to `log`."""

    def __init__(self, log: Callable[[str], None] = lambda text: None) -> None:
        self._log = log

    def log(self, text: str) -> None:
        """A line for the user."""
        self._log(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to end."""

    def skip(self, rounds: int) -> None:
        """Nothing is shown."""

    def round(self, name: str, loss: float | None) -> None:
        """Nothing is shown."""

    def end_cell(self) -> None:
        """Nothing is shown."""

    def each(self, name: str, items: Sequence[Item]) -> Iterator[Item]:
        """The items as they come."""
        return iter(items)


class Display:
    """Shows the rounds of a whole run, their loss and the time left. A context manager.

    Attributes:
      rounds: of a cell.
      cells: of the run.
    """

    def __init__(self, console: Console, *, rounds: int, cells: int = 1) -> None:
        self._console = console
        self._total, self._done = rounds * cells, 0
        self._pace = _Pace(rounds, cells)
        self._last = time.monotonic()
        self._bar = _bar(console) if console.is_terminal else None
        if self._bar:
            self._bar.add_task("", total=self._total)

    def __enter__(self) -> Self:
        self._pace.compiling.start()
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pace.compiling.stop()
        if self._bar:
            self._bar.stop()

    def log(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def skip(self, rounds: int) -> None:
        """Rounds that were done in an earlier start."""
        self._pace.skip(rounds)
        self._done += rounds
        if self._bar:
            self._bar.update(_TASK, completed=self._done)

    def round(self, name: str, loss: float | None) -> None:
        """One round is done: its name, and its mean training loss, if it has one."""
        self._pace.round()
        self._done += 1
        if self._bar:
            self._bar.update(_TASK, completed=self._done)
        text = f"{name}, " + ("no finite loss" if loss is None else f"loss {loss:.3f}")
        self._now(f"{self._done}/{self._total} ", text + self._pace.left())

    def end_cell(self) -> None:
        """All of a cell is done, also what is no round."""
        self._pace.end_cell()

    def each(self, name: str, items: Sequence[Item]) -> Iterator[Item]:
        """Items that are no rounds, one by one, with the number done."""
        began = time.monotonic()
        for number, item in enumerate(items):
            left = self._pace.of_cells()
            left = left or _at_least(began, number, len(items) - number)
            self._now("", f"{name} {number + 1}/{len(items)}{left}")
            yield item

    def _now(self, rounds: str, text: str) -> None:
        """Show the current step; the bar shows the number of rounds itself."""
        if self._bar:
            self._bar.update(_TASK, description=text)
        elif time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.log(f"{rounds}{text}")


class _Pace:
    """The time that is left, by whole cells once one is done, by rounds before.

    Weights and scores take as long as rounds, and show only in whole cells. The first
    cell also compiles: that time is not counted, and the cell only while it is the only
    one.
    """

    def __init__(self, rounds: int, cells: int) -> None:
        self._rounds, self._cells = rounds, cells
        self._seconds: list[float] = []  # of whole cells
        self._done, self._computed, self._whole = 0, 0, True
        self._began = self._first = time.monotonic()
        self.compiling = _Compiling()

    def skip(self, rounds: int) -> None:
        """Rounds of an earlier start; their cell says nothing about others."""
        self._done += rounds
        self._whole = self._whole and rounds == 0

    def round(self) -> None:
        """One round is done; compiling comes before the first, and is no round."""
        self._done, self._computed = self._done + 1, self._computed + 1
        if self._computed == 1:
            self._began = self._first = time.monotonic()

    def end_cell(self) -> None:
        """A cell is done."""
        self._cells -= 1
        self._done = 0
        if self._whole:
            took = time.monotonic() - self._began
            self._seconds.append(took - self.compiling.since(self._began))
        self._began, self._whole = time.monotonic(), True

    def left(self) -> str:
        """The time left, or that of the rounds alone; nothing where it is unknown."""
        more = self._rounds * self._cells - self._done
        return self.of_cells() or _at_least(self._first, self._computed - 1, more)

    def of_cells(self) -> str:
        """The time left, at the pace of whole cells; nothing before one is done."""
        typical = self._seconds[1:] or self._seconds
        if not typical:
            return ""
        cell = sum(typical) / len(typical)
        now = max(cell - (time.monotonic() - self._began), 0)
        return f", {_clock(now + cell * (self._cells - 1))} left"


class _Compiling:
    """When JAX was tracing or compiling a program, while this listens."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []  # disjoint, in order
        self._lock = threading.Lock()

    def start(self) -> None:
        """Listen from here on."""
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def stop(self) -> None:
        """Listen no more."""
        jax.monitoring.unregister_event_duration_listener(self._add)

    def since(self, when: float) -> float:
        """The seconds of it after a point in time."""
        with self._lock:
            return sum(max(end - max(begin, when), 0) for begin, end in self._spans)

    def _add(self, event: str, duration_secs: float, **_: Any) -> None:
        """What JAX says when something ends: it may lie around earlier events."""
        if not event.startswith("/jax/core/compile/"):
            return
        with self._lock:
            end = time.monotonic()
            begin = end - duration_secs
            while self._spans and self._spans[-1][1] > begin:
                begin = min(begin, self._spans.pop()[0])
            self._spans.append((begin, end))


def _at_least(began: float, done: int, more: int) -> str:
    """The time for `more` items at the pace of those that are done."""
    if done < 1:
        return ""
    return f", at least {_clock((time.monotonic() - began) / done * more)} left"


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def _bar(console: Console) -> bars.Progress:
    return bars.Progress(
        bars.BarColumn(20),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.description}"),
        bars.TimeElapsedColumn(),
        console=console,
    )
