"""Every federated algorithm, by name, with its paper and one line of what it does.

A file of `potara_jax.federated.algorithms` registers what it defines, and so may any
other module:

    @algorithm("fedprox", "Li et al. 2020, arXiv 1812.06127", "FedIT with a pull ...")
    def fedprox(task, train, *, strength=0.01): ...
"""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from potara_jax.federated.interface import Algorithm

Make = Callable[..., Algorithm]


class Entry(NamedTuple):
    """`make(task, train, **hyperparameters) -> Algorithm`, its paper, what it is."""

    make: Make
    reference: str
    summary: str


ALGORITHMS: dict[str, Entry] = {}


def algorithm(name: str, reference: str, summary: str) -> Callable[[Make], Make]:
    """Register a function that makes an algorithm.

    Raises `ValueError` where the name is taken by another function.
    """

    def register(make: Make) -> Make:
        known = ALGORITHMS.get(name)
        if known and known.make.__qualname__ != make.__qualname__:
            raise ValueError(f"there is an algorithm '{name}' already")
        ALGORITHMS[name] = Entry(make, reference, summary)
        return make

    return register


def load_file(path: Path) -> None:
    """Import a Python file that registers algorithms.

    Raises `ValueError` where it cannot be imported.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or not path.is_file():
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's code makes of it
        raise ValueError(f"{path} cannot be imported: {error!r}") from error


def load_all() -> dict[str, Entry]:
    """The registry by name, with every algorithm of the package imported."""
    from potara_jax.federated import algorithms

    for found in pkgutil.iter_modules(algorithms.__path__):
        importlib.import_module(f"{algorithms.__name__}.{found.name}")
    return dict(sorted(ALGORITHMS.items()))
