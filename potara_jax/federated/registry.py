"""Every federated algorithm by name, with its paper and a line that says what it does.

A file of `potara_jax.federated.algorithms` registers what it defines, and so may any
other module:

    @algorithm("fedprox", "Li et al. 2020, arXiv 1812.06127", "FedIT with a pull ...")
    def fedprox(task, train, *, mu=0.01): ...
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

from potara_jax.federated.interface import Algorithm

Make = Callable[..., Algorithm]


class Entry(NamedTuple):
    """A registered algorithm.

    Attributes:
      make: `make(task, train, **hyperparameters) -> Algorithm`.
      reference: its paper.
      summary: what it does.
      differs: where it is not what the paper has; empty where it is.
    """

    make: Make
    reference: str
    summary: str
    differs: str = ""


# Rows of a comparison that are not called by an algorithm's name: no algorithm can have
# their names.
RESERVED = frozenset(
    {
        "base",
        "federated",
        "federated + fine-tuning",
        "feddpa_f",
        "largest class",
        "potara core",
        "potara factor",
        "uniform",
    }
)

_ENTRIES: dict[str, Entry] = {}


def algorithm(
    name: str, reference: str, summary: str, *, differs: str = ""
) -> Callable[[Make], Make]:
    """Register a function that makes an algorithm.

    Args:
      name: what the command line and the tables call it.
      reference: its paper.
      summary: a few words that say what it does.
      differs: a few words on what is not as in the paper.

    Raises:
      ValueError: another function has registered the name, or a row of a comparison has
        it.
    """
    if name in RESERVED:
        raise ValueError(
            f"an algorithm cannot be called '{name}', which is another row of the "
            "comparison: choose another name"
        )

    def register(make: Make) -> Make:
        known = _ENTRIES.get(name)
        if known and _origin(known.make) != _origin(make):
            raise ValueError(
                f"an algorithm '{name}' is registered already: choose another name"
            )
        _ENTRIES[name] = Entry(make, reference, summary, differs)
        return make

    return register


def _origin(make: Make) -> tuple[str, str]:
    return make.__module__, make.__qualname__


def algorithms() -> dict[str, Entry]:
    """All registered algorithms, sorted by name; imports all of the package's."""
    package = importlib.import_module("potara_jax.federated.algorithms")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_ENTRIES.items()))
