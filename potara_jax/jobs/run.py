"""Run a job on an experiment: all its cells, then its report."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from potara_jax import memory
from potara_jax.experiment import federating, frozen, methods
from potara_jax.experiment.checks import Refused, require_that
from potara_jax.experiment.context import Context
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Problem, Resources
from potara_jax.experiment.programs import Programs
from potara_jax.experiment.types import check_types
from potara_jax.jobs.job import Job, Record, cells_of
from potara_jax.jobs.result import Result
from potara_jax.jobs.table import Table
from potara_jax.runs import files
from potara_jax.runs.folder import open_folder
from potara_jax.runs.profiling import keep_compiled
from potara_jax.runs.progress import Display, Progress, Silent
from potara_jax.runs.store import Cell, Memory, Store
from potara_jax.versions import versions


def run(
    experiment: Experiment,
    job: Job | None = None,
    *,
    out: Path | str | None = None,
    cache: Path | str | None = None,
    rerun: bool = False,
    profile: bool = False,
    progress: bool = True,
    console: Console | None = None,
    extra: Mapping[str, Any] | None = None,
    code: Sequence[Path] = (),
) -> Result:
    """Run a job on every cell of an experiment.

    The experiment is used as it is; the command line starts from
    `jobs.preset(experiment, job)`.

    Args:
      experiment: what to run.
      job: what to do; default: `Table()`, the table of methods.
      out: run folder, with the report. Finished parts are not repeated; a killed run
        continues after its last round. None: nothing touches the disk.
      cache: folder for pre-trained bases and compiled programs. None: none are kept.
      rerun: discard what the run folder holds, and start over.
      profile: trace a few rounds of every phase into the run folder.
      progress: whether to show the rounds, the loss and the remaining time.
      console: where lines are shown; default: standard error.
      extra: what else determines the results, as JSON values, such as the user's files
        that were imported.
      code: the user's Python files, whose content determines the results too.

    Returns:
      The results, with their tables, reports and models.

    Raises:
      Refused: a `ValueError` of one line for invalid settings, before anything is
        compiled.
    """
    job, console = job or Table(), console or Console(stderr=True)
    log = lambda text: _print(console, text) if progress else None
    warn = log if progress else python_warning
    with ExitStack() as opened:
        with _refusing():
            _check_kinds(experiment, job)
            experiment = experiment.resolve(experiment)
            check(experiment, job)
            config = configuration(experiment, job, code) | dict(extra or {})
            store: Store = Memory(warn)
            if out is not None:
                _check_apart(Path(out), experiment)
                opened.enter_context(files.locked(Path(out)))
                store = open_folder(
                    Path(out), config, rerun=rerun, profile=profile, warn=warn
                )
        resources = Resources(_folder(cache), log)
        if resources.cache is not None:
            keep_compiled(resources.cache)
        result = run_cells(
            experiment,
            job,
            store,
            resources,
            display(experiment, job, console, progress=progress),
            config,
            key_of=lambda cell: jax.random.key(cell.seed),
        )
        if out is not None:  # while the folder is locked
            result.report(out)
        return result


def _check_kinds(experiment: object, job: object) -> None:
    """Raise `ValueError` for a name in place of an experiment, or a class of a job."""
    if not isinstance(experiment, Experiment):
        raise ValueError(
            f"experiment is {experiment!r}: it must be an Experiment, such as "
            "potara_jax.experiments.digits.EXPERIMENT"
        )
    if isinstance(job, type) or not hasattr(job, "run_cell"):
        name = job.__name__ if isinstance(job, type) else "Table"
        raise ValueError(f"job is {job!r}: it must be a job, such as {name}()")


def check(experiment: Experiment, job: Job) -> None:
    """Raise `ValueError` for invalid settings of an experiment or a job."""
    if jax.process_count() > 1:
        raise ValueError(
            f"a run uses the devices of one host, and JAX has {jax.process_count()} "
            "processes: leave out jax.distributed, or train with train_adapters or "
            "federated.make_round, see docs/hosts.md"
        )
    check_types(job, f"{job.name}.")
    experiment.check()
    methods.check(experiment)
    federating.check(experiment)
    job.check(experiment)


def configuration(
    experiment: Experiment, job: Job, code: Sequence[Path] = ()
) -> Record:
    """What determines a run's results: its settings, and the user's files.

    Args:
      experiment: with its settings.
      job: what is done with it.
      code: files of the user's code.

    Raises:
      OSError: a file cannot be read.
    """
    config = {"experiment": experiment.name, "job": job.name}
    config |= {f"{job.name}.{k}": _listed(v) for k, v in vars(job).items()}
    config |= experiment.settings()
    paths = [*code, *experiment.files(experiment)]
    return config | ({files.DATA: files.digest(paths)} if paths else {})


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_apart(out: Path, experiment: Experiment) -> None:
    """Raise `ValueError` if the run folder lies within the user's data."""
    for path in experiment.files(experiment):
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"out is {out}: it must not be inside the data in {path}")


def _check_clients(experiment: Experiment, problem: Problem) -> None:
    """Raise `ValueError` if a federation's number of clients is not the setting's."""
    expected = experiment.cells.clients
    for cell in cells_of(experiment):
        if cell not in problem.federations:
            raise ValueError(f"{experiment.name} has no federation for {cell.name}")
        number = len(problem.federations[cell].train.count)
        require_that(number == expected, "cells.clients", expected, f"{number}")


# --- Cells ---------------------------------------------------------------------------


def run_cells(
    experiment: Experiment,
    job: Job,
    store: Store,
    resources: Resources,
    shown: Display | Silent,
    config: Record,
    *,
    key_of: Callable[[Cell], jax.Array],
) -> Result:
    """The results that a store has, or those of all cells.

    Args:
      experiment: checked, and with what depends on the data.
      job: what to do.
      store: what is kept, also of an earlier run.
      resources: the cache, and the log.
      shown: shows the rounds.
      config: as `configuration` gives it.
      key_of: the key of a cell.

    Returns:
      The results.

    Raises:
      Refused: the problem cannot be made, or does not suit the job.
    """
    results = store.results()
    if results is None:
        with shown as progress:
            tools = resources._replace(log=progress.log)
            problem = _problem(experiment, job, tools)
            store = store.begin()
            if isinstance(shown, Display):  # whose bar stays below all lines
                store = store.warning(progress.log)
            records = _records(experiment, job, store, problem, progress, key_of)
        metric = {"metric": problem.task.metric._asdict()}
        results = _finished(config, job.results(records) | metric)
        store.finish(results)
    make = lambda: experiment.make_problem(experiment, resources)
    return Result(job, experiment, results, store, make)


def _records(
    experiment: Experiment,
    job: Job,
    store: Store,
    problem: Problem,
    progress: Progress,
    key_of: Callable[[Cell], jax.Array],
) -> list[Record]:
    """Run the cells that the store lacks; returns the records of all."""
    programs, cells = Programs(experiment, problem), cells_of(experiment)
    for cell in cells:
        if store.cell(cell) is not None:
            progress.skip(job.rounds(experiment))
            progress.end_cell()
            continue
        key = key_of(cell)
        at = Context(experiment, problem, programs, cell, key, store, progress)
        record = job.run_cell(at)
        store.end_cell(cell, record)
        progress.log(job.summary(at, record))
        progress.end_cell()
    return [record for cell in cells if (record := store.cell(cell)) is not None]


def _problem(experiment: Experiment, job: Job, resources: Resources) -> Problem:
    """The problem, checked, on all devices. Raises `Refused`."""
    with _refusing():
        problem = experiment.make_problem(experiment, resources)
        problem = federating.on_all_devices(experiment, problem)
        _check_clients(experiment, problem)
        job.check_problem(experiment, problem)
    return frozen.kept(experiment, problem, resources.log, resources.cache)


def display(
    experiment: Experiment, job: Job, console: Console, *, progress: bool
) -> Display | Silent:
    """What shows all rounds of a run, or nothing."""
    if not progress:
        return Silent()
    rounds, cells = job.rounds(experiment), len(cells_of(experiment))
    return Display(console, rounds=rounds, cells=cells)


def _finished(config: Record, results: Record) -> Record:
    """All that `results.json` holds."""
    return {
        "experiment": config["experiment"],
        "settings": config,
        "versions": versions(),
        "memory": memory.peak(),
        **results,
    }


# --- Around a run --------------------------------------------------------------------


def _folder(path: Path | str | None) -> Path | None:
    if path is None:
        return None
    folder = Path(path).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def python_warning(text: str) -> None:
    """Warn whoever has asked for no progress."""
    warnings.warn(text, stacklevel=2)


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _refusing() -> Generator[None, None, None]:
    """Turn what checks raise into `Refused`; a later `ValueError` is a defect."""
    try:
        yield
    except ValueError as error:
        raise Refused(" ".join(str(error).split())) from None
    except MemoryError as error:
        reason = f"there is too little memory ({error}); take smaller settings"
        raise Refused(reason) from None
