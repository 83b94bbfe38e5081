"""A run folder: a store whose runs can be continued, and are shown again.

It holds

config.json               settings that determine the results
versions.json             versions of the software
metrics.jsonl             one line per round
checkpoints/              states between rounds
measured/                 weights and scores of the cell that is not finished
cells/*.json              one file per finished cell
adapters/*/*.safetensors  the models of a cell
profile/                  traces of a few rounds of every phase, if profiling is on
states/, speed.jsonl      of a simulation: clients' states, and the speed of rounds

and, once the run is finished, results.json, clients.csv, figures/*.png and report.html.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from potara_jax.adapters.lora import Adapter
from potara_jax.runs import checkpoints, files, trees
from potara_jax.runs.checkpoints import Checkpoint
from potara_jax.runs.profiling import T, traced
from potara_jax.runs.store import Cell
from potara_jax.versions import versions

_FOLDERS = (
    *("adapters", "cells", "checkpoints", "figures", "measured", "profile", "states"),
)
_FILES = (
    *("results.json", "report.html", "clients.csv", "metrics.jsonl", "speed.jsonl"),
    *("versions.json", "config.json"),
)


class RunFolder(NamedTuple):
    """A store in a folder.

    Attributes:
      path: the folder.
      warn: takes lines for the user.
      profile: whether phases are traced.
      config: settings that determine the results.
      replaces: whether `begin` removes another run, of which nothing is shown.
    """

    path: Path
    warn: Callable[[str], None]
    profile: bool = False
    config: Mapping[str, Any] = MappingProxyType({})
    replaces: bool = False

    def begin(self) -> RunFolder:
        """Make the folder this run's, which is not refused from here on."""
        if self.replaces:
            _clear(self.path)
        files.write_json(self.path / "config.json", dict(self.config))
        files.write_json(self.path / "versions.json", versions())
        return self._replace(replaces=False)

    def warning(self, warn: Callable[[str], None]) -> RunFolder:
        """The store, whose lines for the user go elsewhere."""
        return self._replace(warn=warn)

    def traced(self, phase: str, rounds: Iterable[T]) -> Iterator[T]:
        """A phase's rounds, a few of which are traced once if profiling is on."""
        folder = self.path / "profile" / phase
        wanted = self.profile and not folder.exists()
        return traced(rounds, folder if wanted else None, self.warn)

    def begin_phase(self, cell: Cell, phase: str, like: Any) -> Checkpoint | None:
        """What is kept of a phase; its lines in `metrics.jsonl` are made to fit it."""
        checkpoint = checkpoints.restore(self._phase(cell, phase), like, self.warn)
        kept = [line for line in self._metrics() if _origin(line) != (cell, phase)]
        kept += checkpoint.history if checkpoint else []
        text = "".join(json.dumps(files.finite(line)) + "\n" for line in kept)
        files.write_text(self.path / "metrics.jsonl", text)
        return checkpoint

    def saver(
        self, cell: Cell, phase: str, checkpoint: Checkpoint
    ) -> Callable[[], None]:
        """What keeps a round: its checkpoint first, then its line."""
        save = checkpoints.saver(self._phase(cell, phase), checkpoint)
        line = checkpoint.history[-1]

        def keep() -> None:
            save()
            self.add_line("metrics", line)

        return keep

    def forget_phase(self, cell: Cell, phase: str) -> None:
        """Drop the rounds that are kept of a phase."""
        shutil.rmtree(self._phase(cell, phase), ignore_errors=True)

    def states_folder(self, cell: Cell) -> Path:
        """Folder of files with the clients' states."""
        return self.path / "states" / cell.name

    def add_line(self, name: str, line: dict[str, Any]) -> None:
        """Append a record to `NAME.jsonl`."""
        with open(self.path / f"{name}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(files.finite(line)) + "\n")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The records of `NAME.jsonl`, without the torn one of a killed run."""
        lines = files.read_json_lines(self.path / f"{name}.jsonl")
        return [line for line in lines if isinstance(line, dict)]

    def _phase(self, cell: Cell, phase: str) -> Path:
        return self.path / "checkpoints" / cell.name / phase

    def _metrics(self) -> list[dict[str, Any]]:
        return [line for line in self.lines("metrics") if set(line) >= _PLACE]

    def keep_adapters(self, cell: Cell, method: str, adapters: Adapter) -> None:
        """Keep every client's adapter `[C, ...]`."""
        flat = {
            f"{path}/{name}": np.asarray(x)
            for path, entry in adapters.items()
            for name, x in entry.items()
        }
        files.write_bytes(self._adapters(cell, method), save(flat, {"method": method}))

    def has_adapters(self, cell: Cell, method: str) -> bool:
        """Whether a method's adapters are kept."""
        return self._adapters(cell, method).is_file()

    def adapters(self, cell: Cell, method: str) -> Adapter:
        """What is kept of a method: every client's adapter `[C, ...]`.

        Args:
          cell: of the run.
          method: a row of its table.

        Raises:
          ValueError: nothing is kept, or it is damaged.
        """
        path = self._adapters(cell, method)
        if not path.is_file():
            raise ValueError(f"{path} does not exist: the run is not finished")
        try:
            flat = load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged ({error}): run it again with rerun"
            ) from None
        adapters: Adapter = {}
        for name, x in flat.items():
            module, _, parameter = name.rpartition("/")
            adapters.setdefault(module, {})[parameter] = jax.numpy.asarray(x)
        return adapters

    def methods(self, cell: Cell) -> list[str]:
        """The methods whose adapters were kept."""
        kept = sorted((self.path / "adapters" / cell.name).glob("*.safetensors"))
        return [_method_of(path) for path in kept]

    def _adapters(self, cell: Cell, method: str) -> Path:
        name = f"{method.replace(' ', '-')}.safetensors"
        return self.path / "adapters" / cell.name / name

    def cell(self, cell: Cell) -> dict[str, Any] | None:
        """A finished cell's record, if it exists undamaged."""
        path = self.path / "cells" / f"{cell.name}.json"
        return _with_nan(files.read_whole_json(path, self.warn))

    def keep(self, cell: Cell, name: str, value: Any) -> None:
        """Keep a tree of arrays that took long to compute, until the cell is finished.

        A tree with types of the user's is not kept.

        Args:
          cell: of the run.
          name: of the file.
          value: the tree.
        """
        with contextlib.suppress(TypeError):
            files.write_bytes(self._measured(cell, name), trees.to_bytes(value))

    def kept(self, cell: Cell, name: str) -> Any | None:
        """What was kept under a name, if anything; damaged files are as none."""
        path = self._measured(cell, name)
        try:
            return trees.from_bytes(path.read_bytes()) if path.is_file() else None
        except Exception:  # whatever a damaged file makes a reader raise
            self.warn(f"{path} is damaged; making it again")
            return None

    def _measured(self, cell: Cell, name: str) -> Path:
        digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        return self.path / "measured" / cell.name / f"{digest}.npz"

    def end_cell(self, cell: Cell, record: dict[str, Any]) -> None:
        """Keep a finished cell."""
        files.write_json(self.path / "cells" / f"{cell.name}.json", record)
        shutil.rmtree(self.path / "measured" / cell.name, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are not finished, or there is none
            (self.path / "measured").rmdir()

    def results(self) -> dict[str, Any] | None:
        """The finished run's results, if they exist undamaged."""
        if self.replaces:
            return None
        return _with_nan(files.read_whole_json(self.path / "results.json", self.warn))

    def finish(self, results: dict[str, Any]) -> None:
        """Write `results.json`, which marks the run as finished."""
        files.write_json(self.path / "results.json", results)


# Scores of records, which are null in a file if a model has diverged.
_SCORES = {"mean", "worst_decile", "balanced_mean", "federated", "local"} | {
    "best_constant",
    "best_per_client",
    "with_prior",
    "balanced_with_prior",
}


def _with_nan(value: Any) -> Any:
    """A record from a file, with NaN for null among numbers and as a score."""
    nan = float("nan")
    if isinstance(value, list):
        return [nan if x is None else _with_nan(x) for x in value]
    if isinstance(value, dict):
        return {
            key: nan if x is None and key in _SCORES else _with_nan(x)
            for key, x in value.items()
        }
    return value


def _method_of(path: Path) -> str:
    with safe_open(path, "numpy") as file:
        return file.metadata()["method"]


_PLACE = {"heterogeneity", "seed", "phase"}


def _origin(line: dict[str, Any]) -> tuple[Cell, str]:
    return Cell(line["heterogeneity"], line["seed"]), line["phase"]


def open_folder(
    path: Path,
    config: dict[str, Any],
    *,
    rerun: bool = False,
    profile: bool = False,
    warn: Callable[[str], None],
) -> RunFolder:
    """The run folder for a configuration, new or to be continued.

    Nothing is written until it begins.

    Args:
      path: of the folder.
      config: settings that determine the results.
      rerun: whether another run in the folder is replaced.
      profile: whether phases are traced.
      warn: takes lines for the user.

    Raises:
      ValueError: the folder holds files that are not a run's, or a run with another
        configuration; the message names the difference.
    """
    known = path / "config.json"
    replaces = known.exists() and (rerun or not _has_begun(path))
    if known.exists() and not replaces:
        _check_same(path, _read_config(known), config)
    elif not known.exists() and any(not p.name.startswith(".") for p in path.iterdir()):
        raise ValueError(f"{path} is not empty and not a run folder; set another out")
    return RunFolder(path, warn, profile, config, replaces)


def _read_config(path: Path) -> dict[str, Any]:
    """The configuration of an existing run."""
    advice = "set another out, or rerun to replace the run"
    try:
        config = files.read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: it holds no settings; {advice}")
    return config


def _has_begun(path: Path) -> bool:
    """Whether a folder holds a round; a run that failed before its first has none."""
    patterns = ("results.json", "cells/*", "checkpoints/*/*/*")
    return any(any(path.glob(pattern)) for pattern in patterns)


def _clear(path: Path) -> None:
    """Remove a run's files, and nothing else."""
    for name in _FOLDERS:
        shutil.rmtree(path / name, ignore_errors=True)
    for name in _FILES:
        (path / name).unlink(missing_ok=True)


def _check_same(path: Path, known: dict[str, Any], config: dict[str, Any]) -> None:
    names = [n for n in {**config, **known} if config.get(n) != known.get(n)]
    if names == [files.DATA]:
        raise ValueError(
            f"{path} holds a run whose data, checkpoint or code of yours have changed "
            "since; set another out, or rerun to replace it"
        )
    if {"job", "experiment"} & set(names):
        kept, wanted = (
            f"{c.get('job')} of {c.get('experiment')}" for c in (known, config)
        )
        raise ValueError(f"{path} holds a {kept}, not a {wanted}; set another out")
    if names:
        name = names[0]
        more = f" (and {len(names) - 1} more differ)" if len(names) > 1 else ""
        raise ValueError(
            f"{path} holds a run with {name} {known.get(name)}, not "
            f"{config.get(name)}{more}; set another out, or rerun to replace it"
        )
