"""The results of a run: tables, models, and a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from potara_jax import reports
from potara_jax.adapters.lora import Adapter
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.methods import default_method
from potara_jax.experiment.problem import Problem
from potara_jax.jobs.export import Dtype, ExportOptions, Transformers, write_models
from potara_jax.jobs.job import Job, Record, cells_of
from potara_jax.reports import document
from potara_jax.runs import files
from potara_jax.runs.store import Cell, Store


@dataclasses.dataclass(frozen=True)
class Result:
    """The results of a job on an experiment.

    Attributes:
      job: what was run.
      experiment: on what.
      results: plain records, as `results.json` has them.
      store: what the run has kept.
      make_problem: makes the problem again, for `export`.
    """

    job: Job
    experiment: Experiment
    results: Record
    store: Store
    make_problem: Callable[[], Problem]

    def table(self) -> document.Table:
        """The table: a rich table in a terminal, HTML in a notebook."""
        return self.tables()[0]

    def tables(self) -> list[document.Table]:
        """All tables that a terminal shows."""
        return self.job.tables(self.results, self.store)

    def report(self, folder: Path | str) -> Path:
        """Write the report with its figures and tables; the page's path.

        Figures that an earlier report has left in the folder are removed.
        """
        folder = Path(folder)
        made = self.job.report(self.results, self.store, folder / "figures")
        page = document.write(made, folder)
        reports.drawing.remove_others(
            folder / "figures", [one.path for one in made.figures]
        )
        for name, text in self.job.files(self.results).items():
            files.write_text(folder / name, text)
        return page

    def export(
        self,
        folder: Path | str,
        *,
        method: str | None = None,
        clients: Sequence[int] | None = None,
        folded: bool = False,
        dtype: Dtype = "float32",
        transformers: Transformers = 5,
        overwrite: bool = False,
    ) -> Path:
        """Write clients' models as PEFT's folders, `CELL/client-000` and so on.

        Args:
          folder: the folder to write into.
          method: whose models, a key of `adapters`. Default: the default weight's.
          clients: which clients, from 0; default: all.
          folded: write whole models, with the adapters in their weights.
          dtype: of the tensors.
          transformers: the major version of transformers that loads the adapters.
          overwrite: replace existing models.

        Returns:
          The folder.

        Raises:
          ValueError: the method was not kept, a client does not exist, or the folder
            cannot be written.
        """
        options = ExportOptions(folded, dtype, transformers, overwrite)
        problem = self.make_problem()
        chosen = method or default_method(self.experiment, problem.task).name
        adapters = {cell: self.store.adapters(cell, chosen) for cell in self.cells}
        several = range(self.experiment.cells.clients) if clients is None else clients
        write_models(problem, adapters, Path(folder), clients=several, options=options)
        return Path(folder)

    @property
    def cells(self) -> list[Cell]:
        """Every heterogeneity with every seed."""
        return cells_of(self.experiment)

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """Every client's adapter `[C, ...]`, by method, of the only cell.

        Raises:
          ValueError: there are several cells, see `adapters_of`.
        """
        if len(self.cells) > 1:
            names = ", ".join(cell.name for cell in self.cells)
            raise ValueError(f"there are several cells: use adapters_of for {names}")
        return self.adapters_of(self.cells[0])

    def adapters_of(self, cell: Cell) -> Mapping[str, Adapter]:
        """Every client's adapter `[C, ...]`, by method, of one cell."""
        return Adapters(self.store, cell)


class Adapters(Mapping[str, Any]):
    """The adapters that a store keeps of a cell, by method."""

    def __init__(self, store: Store, cell: Cell) -> None:
        self._store, self._cell = store, cell

    def __getitem__(self, method: str) -> Adapter:
        if method not in list(self):
            raise KeyError(f"{method!r}: choose from {', '.join(self)}")
        return self._store.adapters(self._cell, method)

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.methods(self._cell))

    def __len__(self) -> int:
        return len(self._store.methods(self._cell))
