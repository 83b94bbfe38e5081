"""`potara export`: the clients' models of a finished run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from potara_jax import jobs
from potara_jax.cli import catalogue
from potara_jax.cli.jobs import CACHE
from potara_jax.experiment.checks import require_one_of
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.methods import KEPT
from potara_jax.experiment.problem import Problem, Resources
from potara_jax.jobs.export import (
    Dtype,
    ExportOptions,
    Transformers,
    check_free,
    write_models,
)
from potara_jax.merging.registry import DEFAULTS
from potara_jax.models import weights
from potara_jax.models.publishing import Form
from potara_jax.runs import files
from potara_jax.runs.folder import RunFolder
from potara_jax.runs.loading import load_file
from potara_jax.runs.store import Cell
from potara_jax.versions import versions

_CODE = ("load", "file")  # the user's Python files, in `config.json`


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the clients' models of a finished run in Hugging Face's formats.

    Below --out: `CELL/client-000` and so on, each an adapter that PEFT and vLLM load,
    and `base` if the run has pre-trained it. With --folded each is a whole model that
    transformers loads.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    out: Path | None = None
    """The folder to write. Default: `export` in the run folder."""
    method: str | None = None
    """Method of the models: potara core, tempered_bayes, federated, local, or
    `federated + label prior` of a classification. Default: that of the default weight,
    tempered_bayes, or hermite_bayes where the task gives a loss alone."""
    cells: tuple[str, ...] = ()
    """Which of the run's cells, such as `0.1-seed-0`. Default: all."""
    clients: tuple[int, ...] = ()
    """Which clients, from 0. Default: all."""
    folded: bool = False
    """Write whole models, with the adapters in their weights."""
    dtype: Dtype = "float32"
    """The dtype of the written tensors."""
    transformers: Transformers = 5
    """The major version of transformers that loads the adapters. A ViT's modules have
    other names in 4 and 5, a DINOv2's since 5.18. Whole models load in all."""
    overwrite: bool = False
    """Replace existing models."""
    cache: Path = CACHE
    """Where pre-trained bases are kept."""

    def __call__(self) -> None:
        """Write the models. Raises `ValueError` if they cannot be written."""
        console = Console(stderr=True)
        log = partial(console.print, highlight=False, markup=False, soft_wrap=True)
        config = _config(self.run)
        experiment = _experiment(self.run, config)
        cells = _cells(self, experiment)
        folder = RunFolder(self.run, log)
        method = self.method or _default_method(folder, cells)
        adapters = {cell: folder.adapters(cell, method) for cell in cells}
        clients = _clients(self, config["cells.clients"])
        out = self.out or self.run / "export"
        options = ExportOptions(
            self.folded, self.dtype, self.transformers, self.overwrite
        )
        check_free(out, cells, clients, options)
        problem = _problem(self, experiment, log)
        number = write_models(problem, adapters, out, clients=clients, options=options)
        log(f"{number} models of {method}: {out}")
        if problem.form and _reads_another_input(problem.form):
            log(
                "their head reads the tokens otherwise than transformers' classifiers, "
                "so that logits differ there: apply the head yourself, or train with "
                "--pooling pooler"
            )


def _reads_another_input(form: Form) -> bool:
    """Whether a sentence model's head does not read what transformers' heads read."""
    return form.config.get("pooling", "pooler") != "pooler"


def command(words: list[str]) -> tuple[Any, None]:
    """The type of the command."""
    return Export, None


def _config(run: Path) -> dict[str, Any]:
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(f"{run} is not a run folder: it holds no config.json")
    config = files.read_json(path)
    kinds = {"job": str, "experiment": str, "cells.clients": int}
    known = isinstance(config, dict)
    if not known or not all(isinstance(config.get(n), k) for n, k in kinds.items()):
        raise ValueError(f"{path} is not that of a run: name a run folder")
    if config["job"] != "run":
        raise ValueError(f"{run} holds a {config['job']}: only runs keep models")
    return config


def _experiment(run: Path, config: Mapping[str, Any]) -> Experiment:
    """The run's experiment, from its `config.json`.

    Raises `ValueError` if its data are missing or have changed.
    """
    with weights.errors_naming(run / "config.json"):
        for path in config.get("load", ()):
            load_file(Path(path))
        start = catalogue.find(config.get("file") or config["experiment"])
        experiment = start.restored(config)
        experiment.check()
    for path in experiment.files(experiment):
        if not path.expanduser().exists():
            raise ValueError(
                f"{path}, which {run} was run on, does not exist; export from the "
                "folder that it was run in"
            )
    code = [*config.get("load", ()), *filter(None, [config.get("file")])]
    known = jobs.configuration(experiment, jobs.Table(), [Path(x) for x in code])
    _check_same(run, config, known)
    return experiment


def _check_same(run: Path, config: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a run's settings mean something else than they did."""
    others = [name for name in config if name not in known and name not in _CODE]
    lacking = [name for name in known if name not in config]
    if others or lacking:
        what = f"has {others[0]}" if others else f"lacks {lacking[0]}"
        raise ValueError(
            f"{run / 'config.json'} {what}: the settings of {_version(run)} were "
            "others; export with that version, or run it again"
        )
    changed = [name for name, value in known.items() if config[name] != value]
    if changed == [files.DATA]:
        raise ValueError(
            f"the data, checkpoint or code of {run} have changed since it was run by "
            f"{_version(run)}; restore them, or run it again"
        )
    if changed:
        name = changed[0]
        raise ValueError(
            f"{run / 'config.json'} has {name} {config[name]}, not {known[name]}; "
            "restore it, or run it again"
        )


def _version(run: Path) -> str:
    """The version that a run was made with, where it differs from this one."""
    path, name = run / "versions.json", "potara_jax"
    kept = files.read_json(path) if path.is_file() else {}
    made = kept.get(name, "unknown") if isinstance(kept, dict) else "unknown"
    this = versions()[name]
    return f"{name} {made}" + (f" (this is {this})" if made != this else "")


def _cells(options: Export, experiment: Experiment) -> list[Cell]:
    known = {cell.name: cell for cell in jobs.cells_of(experiment)}
    if options.method is not None:
        require_one_of(options.method, "--method", KEPT)
    for name in options.cells:
        if name not in known:
            raise ValueError(f"--cells names {name}: choose from {', '.join(known)}")
    return [known[name] for name in options.cells or known]


def _default_method(folder: RunFolder, cells: list[Cell]) -> str:
    """The row of the default weight that the run has."""
    kept = (name for name in DEFAULTS if folder.has_adapters(cells[0], name))
    return next(kept, DEFAULTS[0])


def _clients(options: Export, number: int) -> list[int]:
    for client in options.clients:
        if not 0 <= client < number:
            raise ValueError(f"--clients names {client}: it must be below {number}")
    return list(options.clients or range(number))


def _problem(options: Export, experiment: Experiment, log: Any) -> Problem:
    """The run's problem again, with its base in float32."""
    resources = Resources(options.cache.expanduser(), log)
    exact = experiment.set({"compute.precision": "float32"})
    try:
        problem = exact.make_problem(exact, resources)
    except ValueError as error:
        raise ValueError(
            f"the base of {options.run} cannot be rebuilt: {error}"
        ) from None
    if problem.form is None:
        raise ValueError(f"models of {experiment.name} cannot be exported")
    return problem
