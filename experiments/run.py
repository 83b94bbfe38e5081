"""Run an experiment: every cell of it, then the table, the figures and the report.

potara run digits --help
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import tyro
from rich.console import Console

from experiments import digits, files
from experiments.cell import run_cell
from experiments.display import Display
from experiments.problem import Problem
from experiments.programs import make_programs
from experiments.settings import Settings, resolved
from experiments.store import Cell, Store, open_store
from potara_jax.evaluation import figures, report, table

_USER_ERROR = 2
_INTERRUPTED = 130


class Experiment(NamedTuple):
    """Its settings with their defaults, and how to make its problem of them."""

    settings: type[Settings]
    problem: Callable[[Any, Callable[[str], None]], Problem]


EXPERIMENTS = {"digits": Experiment(digits.Digits, digits.problem)}


class Refused(Exception):
    """A user's mistake: one line that names it and how to mend it."""


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what checks raise into `Refused`; a later `ValueError` is a defect."""
    try:
        yield
    except ValueError as error:
        raise Refused(" ".join(str(error).split())) from None


def run(name: str, settings: Settings, console: Console) -> None:
    """Run an experiment to its report; what its folder has already is not done again.

    Raises `Refused` for settings that cannot be, before anything is compiled.
    """
    note = lambda text: console.print(text, highlight=False, markup=False)
    with ExitStack() as held:
        with _refusing():
            settings.check()
            held.enter_context(files.locked(settings.out))
            config = {"experiment": name, **resolved(settings)}
            store = open_store(settings.out, config, rerun=settings.rerun, warn=note)
        if store.results() is None:
            _finish(store, config, _all_cells(name, settings, store, console))
        results = store.results()
        _report(store, results)
        console.print(table.terminal_table(table.summarise(results)))
        note(f"report: {store.path / 'report.html'}")


def _all_cells(name, settings, store: Store, console) -> list[dict]:
    cells = [Cell(h, s) for h in settings.heterogeneity for s in settings.seeds]
    rounds = settings.federated_rounds + 2 * settings.local_rounds
    with Display(console, total=len(cells) * rounds) as display:
        store = store._replace(warn=display.note)
        with _refusing():
            problem = EXPERIMENTS[name].problem(settings, display.note)
        programs = make_programs(settings, problem.task)
        for cell in cells:
            if store.cell(cell) is not None:
                display.skip(rounds)
                continue
            record = run_cell(
                cell, settings, programs, problem, store=store, display=display
            )
            store.end_cell(cell, record)
            display.note(_summary(cell, record))
    return [store.cell(cell) for cell in cells]


def _summary(cell: Cell, record: dict) -> str:
    best = max(
        (m for m in record["methods"] if not m["oracle"]), key=lambda m: m["mean"]
    )
    return f"{cell.name}: best is {best['method']} with {100 * best['mean']:.1f} %"


def _finish(store: Store, config: dict, records: list[dict]) -> None:
    """Write `results.json`, which marks the run as finished."""
    results = {
        "experiment": config["experiment"],
        "settings": config,
        "versions": files.read_json(store.path / "versions.json"),
        "methods": [row for record in records for row in record["methods"]],
        "diagnostics": [record["diagnostics"] for record in records],
    }
    files.write_json(store.path / "results.json", results)


def _report(store: Store, results: dict) -> None:
    """Whatever can be made of the results, made anew."""
    files.write_text(store.path / "clients.csv", table.clients_csv(results))
    drawn = figures.draw(results, store.path / "figures")
    files.write_text(store.path / "report.html", report.render(results, drawn))


def main(arguments: Sequence[str] | None = None) -> int:
    """`potara run EXPERIMENT [options]`; the exit status is 2 for a user's mistake."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["run"]:
        words = words[1:]
    if not words or words[0] not in EXPERIMENTS:
        return _usage(words)
    name = words[0]
    kind = EXPERIMENTS[name].settings
    settings = tyro.cli(kind, args=words[1:], prog=f"potara run {name}")
    return _guarded(name, settings)


def _guarded(name: str, settings: Settings) -> int:
    try:
        run(name, settings, Console())
    except Refused as error:
        print(f"potara: {error}", file=sys.stderr)
        return _USER_ERROR
    except OSError as error:
        where = f"cannot use {error.filename or settings.out} ({error.strerror})"
        print(f"potara: {where}; set another --out or --cache", file=sys.stderr)
        return _USER_ERROR
    except KeyboardInterrupt:
        print("potara: interrupted; the same command continues", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _usage(words: list[str]) -> int:
    asked = bool({"-h", "--help"} & set(words))
    text = (
        "usage: potara run EXPERIMENT [options]\n\n"
        f"experiments: {', '.join(EXPERIMENTS)}\n"
        "potara run EXPERIMENT --help shows every setting with its default"
    )
    if asked or not words:
        print(text)
        return 0 if asked else _USER_ERROR
    known = ", ".join(EXPERIMENTS)
    print(
        f"potara: unknown experiment '{words[0]}'; there are: {known}", file=sys.stderr
    )
    return _USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
