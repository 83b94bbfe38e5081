"""Every client's model of a finished run, for PEFT, transformers and vLLM to load."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from rich.console import Console

from potara_jax.adapters import peft
from potara_jax.adapters.lora import Adapter
from potara_jax.experiment import recipes
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.settings import Settings
from potara_jax.jobs.run import EXPERIMENTS, configuration
from potara_jax.models import publishing, weights
from potara_jax.runs import files
from potara_jax.runs.store import Cell, Store


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the clients' models of a finished run as Hugging Face has them.

    Below --out: `CELL/client-000` and so on, each an adapter that PEFT and vLLM load,
    and `base`, where the run has pre-trained it. With --folded each is a whole model
    that transformers loads.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    out: Path | None = None
    """The folder to write. Not given: `export` in the run folder."""
    method: str = recipes.SPECIAL
    """Whose models: potara core, hermite_bayes, federated or local."""
    cells: tuple[str, ...] = ()
    """Which of the run's cells, as `0.1-seed-0`. Not given: all."""
    clients: tuple[int, ...] = ()
    """Which clients, from 0. Not given: all."""
    folded: bool = False
    """Write whole models, with the adapters in their weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of what is written."""
    overwrite: bool = False
    """Replace adapters that are there."""
    cache: Path = Path("~/.cache/potara_jax")
    """Where pre-trained bases are kept."""


def export(options: Export, console: Console) -> None:
    """Write what is asked for. Raises `ValueError` for what cannot be."""
    note = lambda text: console.print(text, highlight=False, markup=False)
    store = Store(options.run, note)
    config = _config(options.run)
    cells = _cells(options, config)
    clients = _clients(options, config)
    adapters = {cell: store.adapters(cell, options.method) for cell in cells}
    out = options.out or options.run / "export"
    folders = {
        (cell, client): out / cell.name / f"client-{client:03d}"
        for cell in cells
        for client in clients
    }
    check = publishing.check_folded if options.folded else peft.check_free
    for folder in folders.values():
        check(folder, overwrite=options.overwrite)
    problem = _problem(config, options, note)
    base = _base(problem, out, options)
    for (cell, client), folder in folders.items():
        own = jax.tree.map(lambda x, at=client: x[at], adapters[cell])
        _write(folder, own, problem, base, options)
    note(f"{len(folders)} models of {options.method}: {out}")


def _config(run: Path) -> dict:
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(f"{run} is no run folder: it holds no config.json")
    config = files.read_json(path)
    known = isinstance(config, dict) and config.get("experiment") in list(EXPERIMENTS)
    if not known or not all(isinstance(config.get(n), k) for n, k in _HAS.items()):
        raise ValueError(f"{path} is not of a run: name the folder of one")
    if config["job"] != "run":
        raise ValueError(f"{run} holds a {config.get('job')}: only runs keep models")
    return config


_HAS = {"job": str, "heterogeneity": list, "seeds": list, "clients": int}


def _cells(options: Export, config: dict) -> list[Cell]:
    known = {
        cell.name: cell
        for heterogeneity in config["heterogeneity"]
        for cell in (Cell(heterogeneity, seed) for seed in config["seeds"])
    }
    if options.method not in recipes.KEPT:
        kept = ", ".join(recipes.KEPT)
        raise ValueError(f"--method is {options.method}: it must be of {kept}")
    for name in options.cells:
        if name not in known:
            raise ValueError(f"--cells names {name}; there are {', '.join(known)}")
    return [known[name] for name in options.cells or known]


def _clients(options: Export, config: dict) -> list[int]:
    number = config["clients"]
    for client in options.clients:
        if not 0 <= client < number:
            raise ValueError(f"--clients names {client}: it must be below {number}")
    return list(options.clients or range(number))


def _problem(config: dict, options: Export, note) -> Problem:
    """The run's problem again, with its base in float32."""
    experiment = EXPERIMENTS[config["experiment"]]
    kind = experiment.settings["run"]
    with weights.understanding(options.run / "config.json"):
        settings = restored(kind, config)
    for path in _read(settings):
        if not path.expanduser().exists():
            raise ValueError(
                f"{path}, which {options.run} was run on, is not there; export from "
                "the folder that it was run in"
            )
    if configuration(config["experiment"], settings, "run") != config:
        raise ValueError(
            f"the data, or the checkpoint, of {options.run} have changed since; export "
            "where they have not"
        )
    how = {"cache": options.cache, "precision": "float32"}
    try:
        problem = experiment.problem(dataclasses.replace(settings, **how), note)
    except ValueError as error:
        raise ValueError(
            f"the base of {options.run} is not to be had: {error}"
        ) from None
    if problem.form is None:
        raise ValueError(f"models of {config['experiment']} cannot be exported")
    return problem


def _read(settings: Settings) -> list[Path]:
    """Files and folders that a run was told to read its data from."""
    folder = getattr(settings, "data_dir", None)
    return [*getattr(settings, "data", ()), *([folder] if folder else [])]


def restored(kind: type[Settings], config: dict) -> Settings:
    """The settings that a run's `config.json` has."""
    types_ = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)} & set(config)
    return kind(**{name: _value(types_[name], config[name]) for name in names})


def _value(wanted, value):
    """A JSON value as the type of a setting."""
    if typing.get_origin(wanted) in (types.UnionType, typing.Union):
        wanted = next(t for t in typing.get_args(wanted) if t is not type(None))
    if typing.get_origin(wanted) is tuple and value is not None:
        if not isinstance(value, list):
            raise TypeError(f"{value!r} is no list")
        return tuple(_value(typing.get_args(wanted)[0], each) for each in value)
    return Path(value) if wanted is Path and value is not None else value


def _base(problem: Problem, out: Path, options: Export) -> str:
    """What adapters are for: the checkpoint, or the base beside them."""
    if checkpoint := problem.form.checkpoint:
        path = Path(checkpoint).expanduser()
        return str(path.resolve()) if path.is_dir() else checkpoint
    folder = out / "base"
    if not options.folded:
        how = {"dtype": options.dtype}
        publishing.write_base(folder, problem.base, problem.form, **how)
    return str(folder.resolve())


def _write(folder: Path, own: Adapter, problem: Problem, base: str, options) -> None:
    form, how = problem.form, {"dtype": options.dtype}
    if options.folded:
        publishing.write_folded(folder, problem.base, own, form, **how)
    else:
        how |= {"overwrite": options.overwrite, "base": base}
        publishing.write_adapter(folder, own, form, **how)
