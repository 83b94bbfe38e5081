"""The commands of the jobs: what is done, with which experiment, and its settings."""

from __future__ import annotations

import dataclasses
from inspect import getdoc
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from potara_jax import jobs
from potara_jax.cli import catalogue
from potara_jax.cli.parsing import BARE, annotated, union
from potara_jax.experiment.experiment import Experiment
from potara_jax.jobs import Job
from potara_jax.reports import document
from potara_jax.runs.loading import load_file

CACHE = Path("~/.cache/potara_jax")


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where and how a run is kept; only `load` can change the results."""

    out: Path
    """Run folder. A finished run is shown again, an unfinished one is continued."""
    cache: Path = CACHE
    """Where pre-trained bases and compiled programs are kept between runs."""
    rerun: bool = False
    """Discard what the run folder holds, and start over."""
    profile: bool = False
    """Trace a few rounds of every phase into the run folder, for TensorBoard or
    Perfetto."""
    load: tuple[Path, ...] = ()
    """Python files that register your algorithms, merges or weights. Default: none."""


def command(words: list[str]) -> tuple[Any, str]:
    """The type of a job's command, `potara JOB EXPERIMENT [options]`.

    Raises:
      ValueError: the experiment is missing, or does not exist.
    """
    job, names = jobs.JOBS[words[0]](), catalogue.names()
    named = words[1] if len(words) > 1 else "--none"
    if not named.startswith("-"):
        catalogue.find(named)
        names = list(dict.fromkeys([*names, named]))
    elif named not in ("-h", "--help"):
        known = ", ".join(names)
        raise ValueError(
            f"{job.name} needs an experiment before all options: {known}, or a Python "
            "file"
        )
    branches = [_branch(job, catalogue.find(name), name) for name in names]
    carry_out = {"__call__": lambda self: self.request()}
    chosen = union[tuple(branches)]
    kind = _dataclass("Command", [("request", annotated[chosen, BARE])], carry_out)
    text = f"{getdoc(job)}\n\nAn experiment may also be a Python file."
    return kind, text


def _branch(job: Job, experiment: Experiment, name: str) -> Any:
    """What is parsed for one experiment: its groups, the job's and the run's options.

    Called, it carries the job out.
    """
    start = jobs.preset(experiment, job)
    prefix = "" if job.name == "run" else f"{job.name}-"
    options = RunOptions(out=Path(f"runs/{prefix}{experiment.name}"))
    bare = {"job": job, "options": options, "source": start.source}
    groups = {name: group for name, group in start.groups() if name != "source"}
    fields = [
        *((n, annotated[type(v), BARE], v) for n, v in bare.items() if v is not None),
        *((n, type(v), v) for n, v in groups.items()),
    ]

    def carry_out(request: Any) -> None:
        changed = {n: getattr(request, n) for n, _ in start.groups()}
        _run(start.replace(**changed), request.job, request.options, name)

    kind = _dataclass("Request", fields, {"__call__": carry_out})
    return annotated[kind, tyro.conf.subcommand(name, description=experiment.summary)]


def _dataclass(name: str, fields: list[tuple], methods: dict[str, Any]) -> Any:
    made = [
        (field, kind, *(dataclasses.field(default=value) for value in default))
        for field, kind, *default in fields
    ]
    return dataclasses.make_dataclass(name, made, namespace=methods, frozen=True)


def _run(experiment: Experiment, job: Job, options: RunOptions, name: str) -> None:
    """Run, show the tables, and say where the report is.

    Tables go to standard output; all else to standard error.
    """
    console = Console(stderr=True)
    for path in options.load:
        load_file(path)
    result = _result(experiment, job, options, name, console)
    tables = Console()
    for table in result.tables():
        tables.print(table)
    page = options.out / document.PAGE
    console.print(f"report: {page}", highlight=False, markup=False, soft_wrap=True)


def _result(
    experiment: Experiment, job: Job, options: RunOptions, name: str, console: Console
) -> jobs.Result:
    """Run; a `ValueError` that is not a user's mistake is a defect, with its trace."""
    code = [path.expanduser().resolve() for path in options.load]
    extra: dict[str, Any] = {"load": [str(path) for path in code]}
    if name.endswith(".py"):
        file = Path(name).expanduser().resolve()
        extra["file"] = str(file)
        code.append(file)
    try:
        return jobs.run(
            experiment,
            job,
            out=options.out,
            cache=options.cache,
            rerun=options.rerun,
            profile=options.profile,
            console=console,
            extra=extra,
            code=code,
        )
    except jobs.Refused:
        raise
    except ValueError as error:
        raise RuntimeError("a defect of potara_jax; please report it") from error
