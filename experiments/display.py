"""Progress for people: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

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
            self._bar.update(self._task, completed=self._done, description=text)
        elif time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.note(f"{self._done}/{self._total} {text}, {self._left()} left")

    def _left(self) -> str:
        if self._computed < 2:
            return "unknown time"
        a_round = (time.monotonic() - self._started) / (self._computed - 1)
        seconds = a_round * (self._total - self._done)
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
