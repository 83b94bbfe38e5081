"""Sixteen small text tasks that are made on the spot, some of which contradict.

A prompt is `word input =`, an answer some characters. Two words, `sort` and `close`,
have two tasks each, and a model cannot know from a prompt which of them is meant.
Inputs are short or longer: how to read longer ones is what the tasks have in common.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from potara_jax.data.text import Example

Rng = np.random.Generator
_MONTHS = [calendar.month_abbr[month] for month in range(1, 13)]
_BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}
_EDIT = str.maketrans("aei", "zyx")
_UNITS = (("km", "m", 1000), ("m", "cm", 100), ("cm", "mm", 10), ("kg", "g", 1000))


class Task(NamedTuple):
    """`make(rng, long)`: an input; `answer(input)`; `word`: what prompts begin with."""

    word: str
    make: Callable[[Rng, bool], str]
    answer: Callable[[str], str]


def _letters(rng: Rng, long: bool) -> str:
    size = rng.integers(3, 6) if long else rng.integers(2, 5)
    return "".join(rng.choice(list("abcdefgh"), size))


def _numbers(rng: Rng, long: bool) -> str:
    return "+".join(map(str, sorted(rng.integers(1, 60 if long else 40, 2))[::-1]))


def _of_two(answer: Callable[[int, int], int]) -> Callable[[str], str]:
    return lambda text: str(answer(*map(int, text.split("+"))))


def _table(rng: Rng, long: bool) -> str:
    number = rng.integers(3, 5) if long else 3
    names = rng.choice(list("abcdefgh"), number, replace=False)
    pairs = [f"{name}{rng.integers(10)}" for name in names]
    return f"{' '.join(pairs)} {rng.choice(names)}"


def _looked_up(text: str) -> str:
    *pairs, asked = text.split()
    return next(pair[1] for pair in pairs if pair[0] == asked)


def _date(rng: Rng, long: bool) -> str:
    year = f"{rng.integers(1900, 2100)}" if long else f"{rng.integers(30):02d}"
    return f"{year}-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d}"


def _written_date(text: str) -> str:
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


def _opened(rng: Rng, long: bool) -> str:
    size = rng.integers(4, 7) if long else rng.integers(2, 6)
    return "".join(rng.choice(list(_BRACKETS), size))


def _place(text: str) -> str:
    *pairs, asked = text.split()
    return str([pair[0] for pair in pairs].index(asked) + 1)


# In the order in which clients take them up.
TASKS = {
    "sort": Task("sort", _letters, lambda x: "".join(sorted(x))),
    "turn": Task("turn", _letters, lambda x: x[::-1]),
    "edit": Task("edit", _letters, lambda x: x.translate(_EDIT)),
    "close": Task("close", _opened, lambda x: "".join(map(_BRACKETS.get, x[::-1]))),
    "sort down": Task("sort", _letters, lambda x: "".join(sorted(x))[::-1]),
    "turn once": Task("shift", _letters, lambda x: x[1:] + x[0]),
    "edit end": Task("add", _letters, lambda x: x + x[0]),
    "close in order": Task("close", _opened, lambda x: "".join(map(_BRACKETS.get, x))),
    "sum": Task("sum", _numbers, _of_two(int.__add__)),
    "digit": Task("digit", _numbers, _of_two(lambda a, b: (a + b) % 10)),
    "date": Task("date", _date, _written_date),
    "day": Task("day", _date, _short_date),
    "find": Task("find", _table, _looked_up),
    "place": Task("place", _table, _place),
    "unit": Task("unit", _unit, _converted),
    "size": Task("size", _unit, lambda x: f"{_converted(x)} {x.split()[2]}"),
}


def make(rng: Rng, task: str, number: int, *, long: bool = True) -> list[Example]:
    """Examples of a task with long or short inputs, no two of them alike.

    Raises `ValueError` where a task has not so many.
    """
    found = at_most(rng, task, number, long=long)
    if len(found) < number:
        raise ValueError(f"task '{task}' has fewer than {number} examples")
    return found


def at_most(rng: Rng, task: str, number: int, *, long: bool) -> list[Example]:
    """As `make`, but fewer where a task has not so many."""
    word, new, answer = TASKS[task]
    found: dict[str, None] = {}
    for _ in range(50 * number):
        if len(found) == number:
            break
        found.setdefault(new(rng, long))
    return [Example(f"{word} {x} =", (answer(x),)) for x in found]
