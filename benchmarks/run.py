"""Measure speed and memory: a table of ratios, each within this one run.

python -m benchmarks.run --help    (or: make bench)
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import figure, frozen, machine, merging, speed
from benchmarks.measure import Line
from benchmarks.merging import Sizes
from potara_jax.runs import files
from potara_jax.versions import versions

# As `potara` sets it; read when JAX makes its first LAPACK call.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


CASES = merging.CASES | speed.CASES | frozen.CASES | machine.CASES


@dataclasses.dataclass(frozen=True)
class Bench:
    """Speed and memory of merging and of the client axis, as ratios within one run."""

    out: Path = Path("runs/bench")
    """Folder for `results.json` and `bench.png`."""
    cases: tuple[str, ...] = tuple(CASES)
    """What to measure."""
    clients: int = 0
    """Clients of the bandwidth cases; default: 1000, on a CPU 100."""
    depth: int = 0
    """Blocks of the ViT-B/16 of the curvature case; default: 12, on a CPU 2."""
    max_clients: int = 0
    """Largest number of clients in the training cases; default: 4096, on a CPU 1024."""
    repeats: int = 15
    """Repeats of each timing, of which the median counts."""

    def check(self) -> None:
        """Raise `ValueError` with the setting, its value and what is allowed."""
        for case in self.cases:
            if case not in CASES:
                raise ValueError(f"no case '{case}': choose from {', '.join(CASES)}")
        limits = {"clients": 0, "depth": 0, "max_clients": 0, "repeats": 1}
        for name, least in limits.items():
            if (value := getattr(self, name)) < least:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is {value}: it must be {least} or more")


def bench(settings: Bench, console: Console) -> list[Line]:
    """All lines, kept in `results.json` as they come, and the figure of them."""
    on_cpu = jax.default_backend() == "cpu"
    clients = settings.clients or (100 if on_cpu else 1000)
    depth = settings.depth or (2 if on_cpu else 12)
    max_clients = settings.max_clients or (1024 if on_cpu else 4096)
    sizes = Sizes(clients, settings.repeats, depth, 2 if on_cpu else None, max_clients)
    record = {"clients": clients, "depth": depth, "max_clients": max_clients}
    lines: list[Line] = []
    for name in settings.cases:
        console.print(f"measuring {name}", highlight=False)
        for line in _measured(name, sizes, console):
            text = f"  {line.what}: {line.ratio:.3g}"
            console.print(text, highlight=False, markup=False)
            lines.append(line)
            _keep(settings, lines, record)
    for path in figure.draw(lines, settings.out):
        console.print(f"figure: {path}", highlight=False)
    return lines


def _measured(name: str, sizes: Sizes, console: Console) -> Iterator[Line]:
    """A case's lines; none if it needs other software that is missing or fails."""
    try:
        yield from CASES[name](sizes)
    except ModuleNotFoundError as error:
        advice = "pip install -r benchmarks/requirements.txt"
        console.print(f"left out {name}: {error.name} is not installed; {advice}")
    except Exception as error:
        if name not in speed.PEERS:
            raise
        console.print(f"left out {name}: it failed with {error!r}", markup=False)


def _keep(settings: Bench, lines: list[Line], sizes: dict) -> None:
    rows = [{**line._asdict(), "met": line.met} for line in lines]
    settings.out.mkdir(parents=True, exist_ok=True)
    record = {"versions": versions(), **sizes, "lines": rows}
    files.write_json(settings.out / "results.json", record)


def _table(lines: list[Line]) -> Table:
    table = Table(box=box.SIMPLE)
    for column in ("What", "Measured", "Reference", "Ratio", "Aim", ""):
        table.add_column(column, justify="right" if column == "Ratio" else "left")
    marks = {True: "met", False: "NOT met", None: ""}
    for line in lines:
        ratio = f"{line.ratio:.3g}"
        table.add_row(*line[:3], ratio, line.aim, marks[line.met])
    return table


def main() -> int:
    """`python -m benchmarks.run [options]`; the exit status is 2 for a mistake."""
    settings = tyro.cli(Bench, prog="python -m benchmarks.run")
    console = Console()
    try:
        settings.check()
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    console.print(_table(bench(settings, console)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
