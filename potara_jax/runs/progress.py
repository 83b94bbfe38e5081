"""Progress for people: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 10.0
Item = TypeVar("Item")


class Display:
    """Shows the rounds of a whole run, their loss and the time left.

    `total` is the number of rounds of the run. A context manager.
    """

    def __init__(self, console: Console, *, total: int):
        self._console = console
        self._total, self._done, self._computed = total, 0, 0
        self._started = self._last = time.monotonic()
        self._bar = _bar(console) if console.is_terminal else None
        self._task = self._bar.add_task("", total=total) if self._bar else None

    def __enter__(self) -> Display:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def skip(self, rounds: int) -> None:
        """Rounds that were done in an earlier start."""
        self._done += rounds
        if self._bar:
            self._bar.update(self._task, completed=self._done)

    def round(self, what: str, loss: float | None) -> None:
        """One round is done: of what, and its mean training loss, if there is one."""
        if not self._computed:  # what comes before, such as compiling, is no round
            self._started = time.monotonic()
        self._done, self._computed = self._done + 1, self._computed + 1
        text = f"{what}, " + ("no finite loss" if loss is None else f"loss {loss:.3f}")
        if self._bar:
            self._bar.update(self._task, completed=self._done)
        left = _left(self._started, self._computed - 1, self._total - self._done)
        self._now(f"{self._done}/{self._total} ", text, left)

    def each(self, what: str, items: Sequence[Item]) -> Iterator[Item]:
        """What is not a round, one by one, with how many are done and the time left."""
        began = time.monotonic()
        for number, item in enumerate(items):
            left = _left(began, number, len(items) - number)
            self._now("", f"{what} {number + 1}/{len(items)}", left)
            yield item

    def _now(self, rounds: str, text: str, left: str) -> None:
        """What is done now; the bar shows the rounds, and their time, by itself."""
        if self._bar:
            more = "" if rounds else f", {left} left"
            self._bar.update(self._task, description=text + more)
        elif time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.note(f"{rounds}{text}, {left} left")


def _left(began: float, done: int, more: int) -> str:
    """Time for so many more, by what those that are done took."""
    if done < 1:
        return "unknown time"
    seconds = (time.monotonic() - began) / done * more
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def _bar(console) -> Progress:
    return Progress(
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
