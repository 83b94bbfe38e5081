"""Sixteen small generated text tasks, some of which contradict each other.

A prompt is `word input =`, an answer a few characters. Two words, `sort` and `close`,
have two tasks each, and a prompt does not say which one is meant. Inputs are short or
long: reading long ones is what the tasks have in common.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from potara_jax.data.text import Example

Rng = np.random.Generator
_MONTHS = [calendar.month_abbr[month] for month in range(1, 13)]
_BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}
_EDIT = str.maketrans("aei", "zyx")
_UNITS = (("km", "m", 1000), ("m", "cm", 100), ("cm", "mm", 10), ("kg", "g", 1000))


class Task(NamedTuple):
    """A task: what an answer has to do with an input.

    Attributes:
      word: begins a prompt.
      draw: `draw(rng, long)` gives an input.
      answer: `answer(input)`, what is right.
    """

    word: str
    draw: Callable[[Rng, bool], str]
    answer: Callable[[str], str]


def _letters(rng: Rng, long: bool) -> str:
    size = rng.integers(3, 6) if long else rng.integers(2, 5)
    return "".join(rng.choice(list("abcdefgh"), size))


def _numbers(rng: Rng, long: bool) -> str:
    return "+".join(map(str, sorted(rng.integers(1, 60 if long else 40, 2))[::-1]))


def _on_both(answer: Callable[[int, int], int]) -> Callable[[str], str]:
    return lambda text: str(answer(*map(int, text.split("+"))))


def _table(rng: Rng, long: bool) -> str:
    number = rng.integers(3, 5) if long else 3
    names = rng.choice(list("abcdefgh"), number, replace=False)
    pairs = [f"{name}{rng.integers(10)}" for name in names]
    return f"{' '.join(pairs)} {rng.choice(names)}"


def _lookup(text: str) -> str:
    *pairs, name = text.split()
    return next(pair[1] for pair in pairs if pair[0] == name)


def _date(rng: Rng, long: bool) -> str:
    year = f"{rng.integers(1900, 2100)}" if long else f"{rng.integers(30):02d}"
    return f"{year}-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d}"


def _spelled_date(text: str) -> str:
    _, month, day = map(int, text.split("-"))
    return f"{day} {_MONTHS[month - 1]}"


def _short_date(text: str) -> str:
    _, month, day = map(int, text.split("-"))
    return f"{day}/{month}"


def _unit(rng: Rng, long: bool) -> str:
    large, small, _ = _UNITS[rng.integers(len(_UNITS))]
    return f"{rng.integers(1, 100 if long else 50)} {large} {small}"


def _converted(text: str) -> str:
    number, large, small = text.split()
    factor = next(f for a, b, f in _UNITS if (a, b) == (large, small))
    return str(int(number) * factor)


def _brackets(rng: Rng, long: bool) -> str:
    size = rng.integers(4, 7) if long else rng.integers(2, 6)
    return "".join(rng.choice(list(_BRACKETS), size))


def _closing(text: str) -> str:
    return "".join(_BRACKETS[bracket] for bracket in text)


def _place(text: str) -> str:
    *pairs, name = text.split()
    return str([pair[0] for pair in pairs].index(name) + 1)


# In the order in which clients take them up.
TASKS: Mapping[str, Task] = {
    "sort": Task("sort", _letters, lambda x: "".join(sorted(x))),
    "turn": Task("turn", _letters, lambda x: x[::-1]),
    "edit": Task("edit", _letters, lambda x: x.translate(_EDIT)),
    "close": Task("close", _brackets, lambda x: _closing(x[::-1])),
    "sort down": Task("sort", _letters, lambda x: "".join(sorted(x))[::-1]),
    "turn once": Task("shift", _letters, lambda x: x[1:] + x[0]),
    "edit end": Task("add", _letters, lambda x: x + x[0]),
    "close in order": Task("close", _brackets, _closing),
    "sum": Task("sum", _numbers, _on_both(int.__add__)),
    "digit": Task("digit", _numbers, _on_both(lambda a, b: (a + b) % 10)),
    "date": Task("date", _date, _spelled_date),
    "day": Task("day", _date, _short_date),
    "find": Task("find", _table, _lookup),
    "place": Task("place", _table, _place),
    "unit": Task("unit", _unit, _converted),
    "size": Task("size", _unit, lambda x: f"{_converted(x)} {x.split()[2]}"),
}


def generate(rng: Rng, task: str, number: int, *, long: bool = True) -> list[Example]:
    """Distinct examples of a task, with long or short inputs.

    Args:
      rng: what they are drawn with.
      task: the name of the task.
      number: of examples.
      long: whether inputs are long.

    Raises:
      ValueError: the task has fewer examples.
    """
    examples = generate_up_to(rng, task, number, long=long)
    if len(examples) < number:
        raise ValueError(f"task '{task}' has fewer than {number} examples")
    return examples


def generate_up_to(rng: Rng, task: str, number: int, *, long: bool) -> list[Example]:
    """As `generate`, or fewer where the task has fewer."""
    word, draw, answer = TASKS[task]
    inputs: dict[str, None] = {}
    for _ in range(50 * number):
        if len(inputs) == number:
            break
        inputs.setdefault(draw(rng, long))
    return [Example(f"{word} {x} =", (answer(x),)) for x in inputs]
