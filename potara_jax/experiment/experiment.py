"""An experiment as one value: groups of settings, and what makes its problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from potara_jax.experiment.checks import require_that
from potara_jax.experiment.problem import Problem, Resources
from potara_jax.experiment.settings import (
    NATURAL,
    Cells,
    Communication,
    Compute,
    Federated,
    Local,
    Lora,
    Merging,
    Participation,
    Pretraining,
    Training,
)
from potara_jax.experiment.types import check_types, from_json, types_of

SOURCE = "source"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Clients that adapt one base, and all settings of how they do it.

    Two experiments with the same `settings()` give the same results. To change one,
    make another: `experiment.replace(lora=Lora(rank=4))`, or
    `experiment.set({"lora.rank": 4})`.

    Attributes:
      name: what it is called on the command line and in reports.
      make_problem: `(experiment, resources) -> Problem`: its model, base and
        federations. Raises `ValueError` for impossible settings.
      summary: one line on what it is.
      source: settings of its data and model, a frozen dataclass, or None. It may have a
        method `check(experiment)` that raises `ValueError`.
      cells: a group of settings, see `Cells`.
      lora: see `Lora`.
      training: see `Training`.
      federated: see `Federated`.
      participation: see `Participation`.
      communication: see `Communication`.
      local: see `Local`.
      merging: see `Merging`.
      pretraining: None where the base is always a checkpoint.
      compute: see `Compute`.
      presets: changes (as `set` takes them) that jobs start from, by the job's name.
      tuned: for each algorithm, keyword arguments that a search has chosen:
        `local_rate` and those of its factory.
      natural: whether the data define the clients.
      resolve: fills in settings that depend on the data, before any check.
      files: the user's files whose content determines the results.
    """

    name: str
    make_problem: Callable[[Experiment, Resources], Problem]
    summary: str = ""
    source: Any = None
    cells: Cells = dataclasses.field(default_factory=Cells)
    lora: Lora = dataclasses.field(default_factory=Lora)
    training: Training = dataclasses.field(default_factory=Training)
    federated: Federated = dataclasses.field(default_factory=Federated)
    participation: Participation = dataclasses.field(default_factory=Participation)
    communication: Communication = dataclasses.field(default_factory=Communication)
    local: Local = dataclasses.field(default_factory=Local)
    merging: Merging = dataclasses.field(default_factory=Merging)
    pretraining: Pretraining | None = None
    compute: Compute = dataclasses.field(default_factory=Compute)
    presets: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    tuned: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    natural: bool = False
    resolve: Callable[[Experiment], Experiment] = lambda experiment: experiment
    files: Callable[[Experiment], list[Path]] = lambda experiment: []

    def __post_init__(self) -> None:
        check_types(self)
        if self.source is not None:
            if not dataclasses.is_dataclass(self.source):
                raise ValueError(f"source is {self.source!r}: it must be a dataclass")
            check_types(self.source, f"{SOURCE}.")

    def replace(self, **changes: Any) -> Experiment:
        """The experiment with some of its groups, or other attributes, replaced.

        Raises:
          ValueError: a group has another type, which its problem cannot use.
        """
        for name in {SOURCE, *GROUPS} & set(changes):
            known, given = getattr(self, name), changes[name]
            same = known is None or isinstance(given, type(known))
            if not same and "make_problem" not in changes:
                raise ValueError(
                    f"{name} is {given!r}: it must be a {type(known).__name__}"
                )
        return dataclasses.replace(self, **changes)

    def set(self, changes: Mapping[str, Any]) -> Experiment:
        """The experiment with some settings changed, by their dotted names.

        Args:
          changes: by name, values as a group has them or as `settings()` gives them:
            lists in place of tuples, and texts in place of paths.

        Raises:
          ValueError: a name is no setting of this experiment, or its value is not of
            the setting's type.
        """
        experiment = self
        for name, value in changes.items():
            group, _, field = name.partition(".")
            if name not in self.settings():
                known = ", ".join(self.settings())
                raise ValueError(f"there is no setting {name}; choose from {known}")
            known = getattr(experiment, group)
            typed = from_json(types_of(known)[field], value)
            changed = dataclasses.replace(known, **{field: typed})
            experiment = experiment.replace(**{group: changed})
        return experiment

    def groups(self) -> Iterator[tuple[str, Any]]:
        """The groups of settings that the experiment has, by name."""
        for name in (SOURCE, *GROUPS):
            if (group := getattr(self, name)) is not None:
                yield name, group

    def settings(self) -> dict[str, Any]:
        """All settings by their dotted names, as JSON values."""
        return {
            f"{name}.{field.name}": _json(getattr(group, field.name))
            for name, group in self.groups()
            for field in dataclasses.fields(group)
        }

    def restored(self, settings: Mapping[str, Any]) -> Experiment:
        """The experiment with settings as `settings()` gave them; others are ignored.

        Raises:
          ValueError: a value is not of its setting's type.
        """
        return self.set({n: settings[n] for n in self.settings() if n in settings})

    def check(self) -> None:
        """Raise `ValueError` for the first invalid setting, with what it must be."""
        for name, group in self.groups():
            if name != SOURCE:
                group.check()
        self._check_together()
        if hasattr(self.source, "check"):
            self.source.check(self)

    def _check_together(self) -> None:
        heterogeneity = self.cells.heterogeneity
        natural = heterogeneity == (NATURAL,)
        expected = NATURAL if self.natural else f"other than {NATURAL}"
        good = natural if self.natural else NATURAL not in heterogeneity
        require_that(good, "cells.heterogeneity", heterogeneity, expected)
        alone = (
            self.communication.privacy_clip is None or not self.participation.weighted
        )
        expected = "off: with privacy_clip it has no account of privacy"
        require_that(alone, "participation.weighted", "on", expected)


GROUPS = (
    *("cells", "lora", "training", "federated", "participation", "communication"),
    *("local", "merging", "pretraining", "compute"),
)


def _json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json(each) for each in value]
    return str(value) if isinstance(value, Path) else value
