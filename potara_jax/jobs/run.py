"""Run a job on an experiment: every cell of it, then what there is to show.

potara run digits --help
potara study digits --help
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import tyro
from rich.console import Console

from potara_jax.experiment import federating, recipes
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.settings import Settings, resolved
from potara_jax.experiments import (
    cifar100,
    clients,
    commonsense,
    digits,
    flan,
    images,
    tasks,
    text,
)
from potara_jax.federated.registry import load_file
from potara_jax.jobs import compare, jobs, simulate, study, tune
from potara_jax.jobs.jobs import Job
from potara_jax.models import weights
from potara_jax.runs import files
from potara_jax.runs.profiling import keep_compiled
from potara_jax.runs.progress import Display
from potara_jax.runs.store import Cell, Store, open_store

_USER_ERROR = 2
_INTERRUPTED = 130


class Experiment(NamedTuple):
    """How to make its problem of settings, and each job's settings with defaults.

    `resolve`: fills in what the user's data say. `own`: whether `settings.data` are the
    user's own, which may change.
    """

    problem: Callable[[Any, Callable[[str], None]], Problem]
    settings: dict[str, type[Settings]]
    resolve: Callable[[Any], Any] = lambda settings: settings
    own: bool = False


JOBS: dict[str, Job] = {
    "run": jobs.TABLE,
    "compare": jobs.COMPARE,
    "study": jobs.STUDY,
    "tune": jobs.TUNE,
    "simulate": jobs.SIMULATE,
}
EXPERIMENTS = {
    "digits": Experiment(
        digits.problem,
        {
            "run": digits.Digits,
            "compare": compare.CompareDigits,
            "study": study.StudyDigits,
            "tune": tune.TuneDigits,
            "simulate": simulate.SimulateDigits,
        },
    ),
    "images": Experiment(images.problem, {"run": images.OwnImages}, own=True),
    "cifar100": Experiment(cifar100.problem, {"run": cifar100.Cifar100}),
    "commonsense": Experiment(commonsense.problem, {"run": commonsense.Commonsense}),
    "flan": Experiment(flan.problem, {"run": flan.Flan}),
    "clients": Experiment(
        clients.problem, {"run": clients.OwnClients}, clients.resolve, own=True
    ),
    "text": Experiment(text.problem, {"run": text.OwnText}, own=True),
    "tasks": Experiment(tasks.problem, {"run": tasks.Tasks}),
}


class Refused(Exception):
    """A user's mistake: one line that names it and how to mend it."""


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what checks raise into `Refused`; a later `ValueError` is a defect."""
    try:
        yield
    except ValueError as error:
        raise Refused(" ".join(str(error).split())) from None
    except MemoryError as error:
        told = f"there is too little memory ({error}); take smaller settings"
        raise Refused(told) from None


def configuration(name: str, settings: Settings, job: str) -> dict:
    """What determines a run's results: its settings, and the files that are the user's.

    Raises `OSError` for files that cannot be read.
    """
    config = {"experiment": name, "job": job, **resolved(settings)}
    own = [*settings.data] if EXPERIMENTS[name].own else []
    if checkpoint := getattr(settings, "checkpoint", None):
        own += weights.files_of(checkpoint)
    return config | ({files.DATA: files.digest(own)} if own else {})


def run(name: str, settings: Settings, console: Console, job: str = "run") -> None:
    """Run a job to its report; what its folder has already is not done again.

    Raises `Refused` for settings that cannot be, before anything is compiled.
    """
    note = lambda text: console.print(text, highlight=False, markup=False)
    with ExitStack() as held:
        with _refusing():
            for path in settings.load:
                load_file(path)
            settings = EXPERIMENTS[name].resolve(settings)
            settings.check()
            recipes.check(settings)
            federating.check(settings)
            held.enter_context(files.locked(settings.out))
            config = configuration(name, settings, job)
            settings.cache.expanduser().mkdir(parents=True, exist_ok=True)
            store = open_store(settings.out, config, rerun=settings.rerun, warn=note)
            store = store._replace(profile=settings.profile)
        keep_compiled(settings.cache)
        if store.results() is None:
            records = _all_cells(name, JOBS[job], settings, store, console)
            _finish(store, config, JOBS[job].results(records))
        note(f"report: {JOBS[job].report(store, store.results(), console)}")


def _all_cells(name, job: Job, settings, store: Store, console) -> list[dict]:
    cells = [Cell(h, s) for h in settings.heterogeneity for s in settings.seeds]
    rounds = job.rounds(settings)
    with Display(console, total=len(cells) * rounds) as display:
        store = store._replace(warn=display.note)
        with _refusing():
            problem = EXPERIMENTS[name].problem(settings, display.note)
            problem = federating.placed(settings, problem)
        with _refusing():
            programs = job.programs(settings, problem)
        for cell in cells:
            if store.cell(cell) is not None:
                display.skip(rounds)
                continue
            record = job.cell(
                cell, settings, programs, problem, store=store, display=display
            )
            store.end_cell(cell, record)
            display.note(job.summary(cell, record))
    return [store.cell(cell) for cell in cells]


def _finish(store: Store, config: dict, found: dict) -> None:
    """Write `results.json`, which marks the run as finished."""
    results = {
        "experiment": config["experiment"],
        "settings": config,
        "versions": files.read_json(store.path / "versions.json"),
        **found,
    }
    files.write_json(store.path / "results.json", results)


def main(arguments: Sequence[str] | None = None) -> int:
    """`potara run EXPERIMENT [options]`; the exit status is 2 for a user's mistake."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    job = words.pop(0) if words[:1] and words[0] in JOBS else "run"
    if not words or words[0] not in EXPERIMENTS:
        return _usage(words)
    name, kinds = words[0], EXPERIMENTS[words[0]].settings
    if job not in kinds:
        able = [n for n, other in EXPERIMENTS.items() if job in other.settings]
        told = f"there is no {job} of {name}; there is of {', '.join(able)}"
        print(f"potara: {told}", file=sys.stderr)
        return _USER_ERROR
    kind = kinds[job]
    settings = tyro.cli(kind, args=words[1:], prog=f"potara {job} {name}")
    return _guarded(name, settings, job)


def _guarded(name: str, settings: Settings, job: str) -> int:
    try:
        run(name, settings, Console(), job)
    except Refused as error:
        print(f"potara: {error}", file=sys.stderr)
        return _USER_ERROR
    except BrokenPipeError:
        raise
    except OSError as error:
        named = error.filename or f"{settings.out} or {settings.cache}"
        where = f"cannot use {named} ({error.strerror or error})"
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
