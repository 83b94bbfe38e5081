"""Checks of settings, which name the setting, its value and what it must be."""

from __future__ import annotations

import math
from typing import Any


class Refused(ValueError):
    """A user's mistake, in one line that says how to correct it."""


def require_that(good: bool, name: str, value: Any, expected: str) -> None:
    """Raise `ValueError` naming a setting, its value and what it must be."""
    if not good:
        raise ValueError(f"{name} is {_shown(value)}: it must be {expected}")


def require_one_of(value: str, name: str, known: Any) -> None:
    """Check that a name is among the known ones.

    Those with spaces, which need quotes in a shell, are shown with them.

    Args:
      value: the name.
      name: of the setting, for the message.
      known: all names.

    Raises:
      ValueError: it is none of them.
    """
    shown = [f"'{each}'" if " " in each else each for each in known]
    require_that(value in known, name, value, f"one of {', '.join(shown)}")


def require_positive(group: Any, prefix: str, *names: str) -> None:
    """Raise `ValueError` if a field is not above 0 and finite; None is allowed."""
    for name in names:
        value = getattr(group, name)
        good = value is None or 0 < value < math.inf
        require_that(good, f"{prefix}.{name}", value, "above 0, and finite")


def require_not_negative(group: Any, prefix: str, *names: str) -> None:
    """Raise `ValueError` if a field is below 0 or infinite."""
    for name in names:
        value = getattr(group, name)
        good = 0 <= value < math.inf
        require_that(good, f"{prefix}.{name}", value, "0 or more, and finite")


def require_at_least(group: Any, prefix: str, least: int, *names: str) -> None:
    """Raise `ValueError` if a field is below a number; None is allowed."""
    for name in names:
        value = getattr(group, name)
        good = value is None or value >= least
        require_that(good, f"{prefix}.{name}", value, f"{least} or more")


def require_at_most(group: Any, prefix: str, limit: int, *names: str) -> None:
    """Raise `ValueError` if a field is above a number; None is allowed."""
    for name in names:
        value = getattr(group, name)
        good = value is None or value <= limit
        require_that(good, f"{prefix}.{name}", value, f"{limit} or less")


def require_distinct(group: Any, prefix: str, *names: str) -> None:
    """Raise `ValueError` if a field is empty, or names something twice."""
    for name in names:
        values = getattr(group, name)
        require_that(bool(values), f"{prefix}.{name}", "empty", "at least one value")
        good = len(set(values)) == len(values)
        require_that(good, f"{prefix}.{name}", values, "distinct values")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
