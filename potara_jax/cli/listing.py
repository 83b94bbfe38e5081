"""`potara list`: experiments, jobs, algorithms, merges and weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from potara_jax import jobs
from potara_jax.cli import catalogue
from potara_jax.federated.registry import algorithms
from potara_jax.merging import registry
from potara_jax.runs.loading import load_file

Kind = Literal["all", "experiments", "jobs", "algorithms", "merges", "weights"]


@dataclasses.dataclass(frozen=True)
class List:
    """List everything that settings and options can name."""

    kind: Annotated[Kind, tyro.conf.Positional] = "all"
    """What to show."""
    load: tuple[Path, ...] = ()
    """Python files that register your algorithms, merges or weights. Default: none."""
    markdown: bool = False
    """Print Markdown, as in the documentation's reference."""

    def __call__(self) -> None:
        """Print a table of each kind."""
        for path in self.load:
            load_file(path)
        for name, listing in _LISTINGS.items():
            if self.kind in ("all", name) and self.markdown:
                print(_markdown(name, listing))
            elif self.kind in ("all", name):
                Console().print(_table(name, listing))


def command(words: list[str]) -> tuple[Any, None]:
    """The type of the command."""
    return List, None


def _experiments() -> Iterator[tuple[str, ...]]:
    for name in catalogue.names():
        yield name, catalogue.find(name).summary


def _jobs() -> Iterator[tuple[str, ...]]:
    for name, job in jobs.JOBS.items():
        yield name, str(getdoc(job)).split("\n")[0]


def _algorithms() -> Iterator[tuple[str, ...]]:
    for name, entry in algorithms().items():
        yield name, entry.summary, entry.reference, entry.differs


def _merges() -> Iterator[tuple[str, ...]]:
    for name, entry in registry.merges().items():
        yield name, entry.summary, ", ".join(entry.spaces), entry.reference


def _weights() -> Iterator[tuple[str, ...]]:
    for name, entry in registry.weights().items():
        yield name, entry.summary, entry.needs, entry.samples, entry.reference


class _Listing(NamedTuple):
    """The rows of a list, and the heads of its columns behind the name."""

    rows: Callable[[], Iterator[tuple[str, ...]]]
    columns: tuple[str, ...]


_LISTINGS = {
    "experiments": _Listing(_experiments, ("what it is",)),
    "jobs": _Listing(_jobs, ("what it does",)),
    "algorithms": _Listing(
        _algorithms, ("what it does", "source", "what differs from it")
    ),
    "merges": _Listing(_merges, ("what it does", "spaces", "source")),
    "weights": _Listing(_weights, ("what it is", "needs", "samples", "source")),
}


def _table(title: str, listing: _Listing) -> Table:
    table = Table("name", *listing.columns, title=title, box=box.SIMPLE_HEAD)
    table.title_justify = "left"
    for row in listing.rows():
        table.add_row(*row)
    return table


def _markdown(title: str, listing: _Listing) -> str:
    heads = ["name", *listing.columns]
    rows = [[f"`{name}`", *texts] for name, *texts in listing.rows()]
    lines = [heads, ["---"] * len(heads), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {title.capitalize()}\n\n{table}\n"
