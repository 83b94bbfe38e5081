"""What a run keeps, and a store that keeps it in memory alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from potara_jax.adapters.lora import Adapter
from potara_jax.runs.checkpoints import Checkpoint
from potara_jax.runs.profiling import T


class Cell(NamedTuple):
    """One heterogeneity with one seed."""

    heterogeneity: str
    seed: int

    @property
    def name(self) -> str:
        """The cell's name in paths."""
        return f"{self.heterogeneity}-seed-{self.seed}"


class Store(Protocol):
    """What a run keeps; `warn` takes lines for the user."""

    @property
    def warn(self) -> Callable[[str], None]:
        """Takes a line for the user."""

    def warning(self, warn: Callable[[str], None]) -> Store:
        """The store, whose lines for the user go elsewhere."""

    def begin(self) -> Store:
        """The store of a run whose settings were accepted; before, nothing is kept."""

    def traced(self, phase: str, rounds: Iterable[T]) -> Iterator[T]:
        """A phase's rounds, a few of which are traced if profiling is on."""

    def begin_phase(self, cell: Cell, phase: str, like: Any) -> Checkpoint | None:
        """The checkpoint of a phase whose state has the structure of `like`, if any."""

    def saver(
        self, cell: Cell, phase: str, checkpoint: Checkpoint
    ) -> Callable[[], None]:
        """What keeps a round when it is called; it has copied the checkpoint."""

    def forget_phase(self, cell: Cell, phase: str) -> None:
        """Drop the rounds that are kept of a phase."""

    def states_folder(self, cell: Cell) -> Path | None:
        """Folder of files with the clients' states; None: in memory."""

    def add_line(self, name: str, line: dict[str, Any]) -> None:
        """Append a record to a list, such as `speed`."""

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The records of a list."""

    def keep_adapters(self, cell: Cell, method: str, adapters: Adapter) -> None:
        """Keep every client's adapter `[C, ...]`."""

    def adapters(self, cell: Cell, method: str) -> Adapter:
        """What was kept of a method.

        Args:
          cell: of the run.
          method: a row of its table.

        Raises:
          ValueError: nothing was kept of it.
        """

    def methods(self, cell: Cell) -> list[str]:
        """The methods whose adapters were kept."""

    def cell(self, cell: Cell) -> dict[str, Any] | None:
        """A finished cell's record."""

    def keep(self, cell: Cell, name: str, value: Any) -> None:
        """Keep a tree of arrays that took long, until the cell is finished."""

    def kept(self, cell: Cell, name: str) -> Any | None:
        """What was kept under a name, if anything."""

    def end_cell(self, cell: Cell, record: dict[str, Any]) -> None:
        """Keep a finished cell."""

    def results(self) -> dict[str, Any] | None:
        """The finished run's results."""

    def finish(self, results: dict[str, Any]) -> None:
        """Keep the results, which marks the run as finished."""


# --- In memory -----------------------------------------------------------------------


class Memory:
    """A store that ends with the process."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self._lines: dict[str, list[dict[str, Any]]] = {}
        self._adapters: dict[tuple[Cell, str], Adapter] = {}
        self._cells: dict[Cell, dict[str, Any]] = {}

    def warning(self, warn: Callable[[str], None]) -> Memory:
        """The store, whose lines for the user go elsewhere from here on."""
        self.warn = warn
        return self

    def begin(self) -> Memory:
        """The store, in which there is nothing to replace."""
        return self

    def traced(self, phase: str, rounds: Iterable[T]) -> Iterator[T]:
        """The rounds as they come."""
        return iter(rounds)

    def begin_phase(self, cell: Cell, phase: str, like: Any) -> Checkpoint | None:
        """Nothing: a phase is never resumed."""
        return None

    def saver(
        self, cell: Cell, phase: str, checkpoint: Checkpoint
    ) -> Callable[[], None]:
        """What keeps nothing."""
        return lambda: None

    def forget_phase(self, cell: Cell, phase: str) -> None:
        """Nothing was kept."""

    def states_folder(self, cell: Cell) -> Path | None:
        """Clients' states stay in memory."""
        return None

    def add_line(self, name: str, line: dict[str, Any]) -> None:
        """Append a record."""
        self._lines.setdefault(name, []).append(line)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The records of a list."""
        return self._lines.get(name, [])

    def keep_adapters(self, cell: Cell, method: str, adapters: Adapter) -> None:
        """Keep every client's adapter `[C, ...]`, on its device."""
        self._adapters[cell, method] = adapters

    def adapters(self, cell: Cell, method: str) -> Adapter:
        """What was kept of a method.

        Args:
          cell: of the run.
          method: a row of its table.

        Raises:
          ValueError: nothing was kept of it.
        """
        if (cell, method) not in self._adapters:
            kept = ", ".join(self.methods(cell))
            raise ValueError(f"no adapters of '{method}' were kept, only of {kept}")
        return self._adapters[cell, method]

    def methods(self, cell: Cell) -> list[str]:
        """The methods whose adapters were kept."""
        return [method for place, method in self._adapters if place == cell]

    def cell(self, cell: Cell) -> dict[str, Any] | None:
        """A finished cell's record."""
        return self._cells.get(cell)

    def keep(self, cell: Cell, name: str, value: Any) -> None:
        """Nothing: a cell is never resumed."""

    def kept(self, cell: Cell, name: str) -> Any | None:
        """None: a cell is never resumed."""
        return None

    def end_cell(self, cell: Cell, record: dict[str, Any]) -> None:
        """Keep a finished cell."""
        self._cells[cell] = record

    def results(self) -> dict[str, Any] | None:
        """None: a run is never shown again."""
        return None

    def finish(self, results: dict[str, Any]) -> None:
        """Nothing is left to keep."""
