"""The run folder.

config.json     settings that determine the results      versions.json  software
metrics.jsonl   a line a round        cells/*.json   a finished cell
checkpoints/    states between rounds        adapters/*/*.safetensors   models of a cell
profile/        traces of a few rounds of every phase, with --profile
states/  speed.jsonl     of a simulation: what clients keep, and how fast it was
results.json  clients.csv  figures/*.png  report.html       of the finished run
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from potara_jax.runs import checkpoints
from potara_jax.runs import files
from potara_jax.runs.checkpoints import Saved
from potara_jax.runs.profiling import T, traced
from potara_jax.adapters.lora import Adapter

_PACKAGES = (
    "potara_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
)
_FILES = (
    "results.json",
    "report.html",
    "clients.csv",
    "metrics.jsonl",
    "speed.jsonl",
    "versions.json",
    "config.json",
)


class Cell(NamedTuple):
    """One heterogeneity with one seed."""

    heterogeneity: str
    seed: int

    @property
    def name(self) -> str:
        """The cell's name in paths."""
        return f"{self.heterogeneity}-seed-{self.seed}"


class Store(NamedTuple):
    """The run folder `path`; `warn` takes lines for the user.

    profile: whether phases are traced.
    """

    path: Path
    warn: Callable[[str], None]
    profile: bool = False

    def traced(self, phase: str, rounds: Iterable[T]) -> Iterator[T]:
        """A phase's rounds, a few of which are traced where that is wanted, once."""
        folder = self.path / "profile" / phase
        wanted = self.profile and not folder.exists()
        return traced(rounds, folder if wanted else None, self.warn)

    def phase(self, cell: Cell, phase: str) -> Path:
        """Where a phase's checkpoints are."""
        return self.path / "checkpoints" / cell.name / phase

    def begin_phase(self, cell: Cell, phase: str, like: Any) -> Saved | None:
        """What is kept of a phase; its lines in `metrics.jsonl` are made to fit it."""
        saved = checkpoints.restore(self.phase(cell, phase), like, self.warn)
        others = [line for line in self._metrics() if _origin(line) != (cell, phase)]
        lines = others + [line for line in (saved.history if saved else [])]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        files.write_text(self.path / "metrics.jsonl", text)
        return saved

    def end_round(self, cell: Cell, phase: str, saved: Saved) -> None:
        """Keep a round: its checkpoint first, then its line."""
        checkpoints.save(self.phase(cell, phase), saved)
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(saved.history[-1]) + "\n")

    def _metrics(self) -> list[dict]:
        found = files.read_json_lines(self.path / "metrics.jsonl")
        return [x for x in found if isinstance(x, dict) and set(x) >= _PLACE]

    def keep_adapters(self, cell: Cell, method: str, adapters: Adapter) -> None:
        """Keep every client's adapter `[C, ...]`."""
        flat = {
            f"{path}/{name}": np.asarray(x)
            for path, entry in adapters.items()
            for name, x in entry.items()
        }
        files.write_bytes(self._adapters(cell, method), save(flat))

    def adapters(self, cell: Cell, method: str) -> Adapter:
        """What is kept of a method: every client's adapter `[C, ...]`.

        Raises `ValueError` where nothing is, or it is damaged.
        """
        path = self._adapters(cell, method)
        if not path.is_file():
            raise ValueError(f"{path} is not there: the run is not finished")
        try:
            flat = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): --rerun the run") from None
        found: Adapter = {}
        for name, x in flat.items():
            module, _, parameter = name.rpartition("/")
            found.setdefault(module, {})[parameter] = x
        return found

    def _adapters(self, cell: Cell, method: str) -> Path:
        name = f"{method.replace(' ', '-')}.safetensors"
        return self.path / "adapters" / cell.name / name

    def cell(self, cell: Cell) -> dict | None:
        """A finished cell's record, if it is there and whole."""
        path = self.path / "cells" / f"{cell.name}.json"
        return files.read_whole_json(path, self.warn)

    def results(self) -> dict | None:
        """The finished run's results, if they are there and whole."""
        return files.read_whole_json(self.path / "results.json", self.warn)

    def end_cell(self, cell: Cell, record: dict) -> None:
        """Keep a finished cell."""
        files.write_json(self.path / "cells" / f"{cell.name}.json", record)


_PLACE = {"heterogeneity", "seed", "phase"}


def _origin(line: dict) -> tuple[Cell, str]:
    return Cell(line["heterogeneity"], line["seed"]), line["phase"]


def open_store(
    path: Path, config: dict, *, rerun: bool, warn: Callable[[str], None]
) -> Store:
    """The run folder for a configuration, new or to be continued.

    Raises `ValueError` where it holds a run with another configuration, naming what is
    different, or files that are not of a run.
    """
    known = path / "config.json"
    if known.exists() and (rerun or not _begun(path)):
        _clear(path)
    elif known.exists():
        _check_same(path, _known(known), config)
    elif any(not p.name.startswith(".") for p in path.iterdir()):
        raise ValueError(f"{path} is not empty and not a run folder; set another --out")
    files.write_json(known, config)
    files.write_json(path / "versions.json", versions())
    return Store(path, warn)


def _known(path: Path) -> dict:
    """The configuration of a run that is there."""
    mend = "set another --out, or --rerun to replace the run"
    try:
        found = files.read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; {mend}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no settings; {mend}")
    return found


def _begun(path: Path) -> bool:
    """Whether a folder holds a round: what was refused, or broke before, has none."""
    held = ("results.json", "cells/*", "checkpoints/*/*/*")
    return any(any(path.glob(pattern)) for pattern in held)


def _clear(path: Path) -> None:
    """Remove a run's files, and nothing else."""
    for name in ("adapters", "cells", "checkpoints", "figures", "profile", "states"):
        shutil.rmtree(path / name, ignore_errors=True)
    for name in _FILES:
        (path / name).unlink(missing_ok=True)


def _check_same(path, known, config):
    names = [n for n in {**config, **known} if config.get(n) != known.get(n)]
    if names == [files.DATA]:
        raise ValueError(
            f"{path} holds a run on data, or a checkpoint, that have changed since; "
            "set another --out, or --rerun to replace it"
        )
    if {"job", "experiment"} & set(names):
        told, asked = (
            f"{c.get('job')} of {c.get('experiment')}" for c in (known, config)
        )
        raise ValueError(f"{path} holds a {told}, not a {asked}; set another --out")
    if names:
        name = names[0]
        option = "--" + name.replace("_", "-")
        more = f" (and {len(names) - 1} more differ)" if len(names) > 1 else ""
        raise ValueError(
            f"{path} holds a run with {option} {known.get(name)}, not "
            f"{config.get(name)}{more}; set another --out, or --rerun to replace it"
        )


def versions() -> dict[str, str]:
    """Software and device of this process."""
    packages = {name: _version(name) for name in _PACKAGES}
    device = jax.devices()[0]
    machine = f"{jax.device_count()} x {device.platform} {device.device_kind}"
    return {"python": platform.python_version(), **packages, "device": machine}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
