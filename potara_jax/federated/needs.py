"""What an algorithm needs of a task that not every task has."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def needed(function: T | None, algorithm: str, what: str) -> T:
    """A function of a task, which an algorithm cannot do without.

    Args:
      function: such as `task.add`.
      algorithm: its name.
      what: what the function is, for the message.

    Raises:
      ValueError: the task has no such function.
    """
    if function is None:
        raise ValueError(
            f"{algorithm} needs {what}, which this task does not have: "
            "use another algorithm"
        )
    return function
