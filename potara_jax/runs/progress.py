"""Progress: a bar on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar

from rich import progress as bars
from rich.console import Console

_SECONDS_BETWEEN_LINES = 10.0
_PACED = 4  # rounds, after which the time of all is said
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

    def each(self, name: str, items: Sequence[Item]) -> Iterator[Item]:
        """The items as they come."""
        return iter(items)


class Display:
    """Shows the rounds of a whole run, their loss and the time left.

    `total` is the number of rounds of the run. A context manager.
    """

    def __init__(self, console: Console, *, total: int) -> None:
        self._console = console
        self._total, self._done, self._computed = total, 0, 0
        self._started = self._last = time.monotonic()
        self._bar = _bar(console) if console.is_terminal else None
        if self._bar:
            self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
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

    def log(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def skip(self, rounds: int) -> None:
        """Rounds that were done in an earlier start."""
        self._done += rounds
        if self._bar:
            self._bar.update(_TASK, completed=self._done)

    def round(self, name: str, loss: float | None) -> None:
        """One round is done: its name, and its mean training loss, if it has one."""
        if not self._computed:  # compiling comes before, and is no round
            self._started = time.monotonic()
        self._done, self._computed = self._done + 1, self._computed + 1
        text = f"{name}, " + ("no finite loss" if loss is None else f"loss {loss:.3f}")
        if self._bar:
            self._bar.update(_TASK, completed=self._done)
        left = _left(self._started, self._computed - 1, self._total - self._done)
        self._now(f"{self._done}/{self._total} ", text, left)
        more = self._total - self._done
        if self._computed == _PACED and more:
            self.log(
                f"at the pace of the first rounds, the {more} that are left take "
                f"{left}; weights and scores come on top"
            )

    def each(self, name: str, items: Sequence[Item]) -> Iterator[Item]:
        """Items that are no rounds, one by one, with the number done and time left."""
        began = time.monotonic()
        for number, item in enumerate(items):
            left = _left(began, number, len(items) - number)
            self._now("", f"{name} {number + 1}/{len(items)}", left)
            yield item

    def _now(self, rounds: str, text: str, left: str) -> None:
        """Show the current step; the bar shows the rounds, and their time, itself."""
        if self._bar:
            more = "" if rounds else f", {left} left"
            self._bar.update(_TASK, description=text + more)
        elif time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.log(f"{rounds}{text}, {left} left")


def _left(began: float, done: int, more: int) -> str:
    """Time for `more` items at the pace of those that are done."""
    if done < 1:
        return "unknown time"
    seconds = (time.monotonic() - began) / done * more
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def _bar(console: Console) -> bars.Progress:
    return bars.Progress(
        bars.BarColumn(20),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.description}"),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
        console=console,
    )
