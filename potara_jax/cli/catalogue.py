"""The experiments that the command line knows: the packaged ones, and users' files."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from potara_jax.experiment.experiment import Experiment
from potara_jax.runs.loading import load_file

_PACKAGE = "potara_jax.experiments"


def names() -> list[str]:
    """The packaged experiments."""
    package = importlib.import_module(_PACKAGE)
    return [module.name for module in pkgutil.iter_modules(package.__path__)]


def find(name: str) -> Experiment:
    """A packaged experiment by its name, or the one of a Python file.

    Raises:
      ValueError: there is none.
    """
    if name.endswith(".py"):
        module = load_file(Path(name))
    elif name in names():
        module = importlib.import_module(f"{_PACKAGE}.{name}")
    else:
        known = ", ".join(names())
        file = f"{name}.py" if Path(f"{name}.py").is_file() else "a Python file"
        raise ValueError(
            f"there is no experiment {name}; choose from {known}, or {file}"
        )
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{name} has no EXPERIMENT = Experiment(...)")
    return experiment
