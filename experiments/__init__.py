"""The experiments: one file each, which defines `EXPERIMENT`.

A new file here is a new experiment: `potara run NAME` knows it.
"""

from __future__ import annotations

import importlib
import pkgutil

from potara_jax.experiment.experiment import Experiment

__all__ = ["load", "names"]


def names() -> list[str]:
    """The names of all experiments, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Experiment:
    """An experiment by its name.

    Raises `ValueError` for a name that is not among `names()`.
    """
    if name not in names():
        raise ValueError(f"unknown experiment '{name}'; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}").EXPERIMENT
