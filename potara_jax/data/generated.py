"""Small text tasks that are made on the spot, some of which contradict each other.

A prompt is `word input =`, an answer some characters. Two tasks share each word, and a
model cannot know from a prompt which of them is meant: this is what clients differ in.
"""

from __future__ import annotations

import calendar
import string
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from potara_jax.data.text import Example

Rng = np.random.Generator
_MONTHS = [calendar.month_abbr[month] for month in range(1, 13)]
_BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}
_EDIT = str.maketrans("aei", "zyx")
_UNITS = (("km", "m", 1000), ("m", "cm", 100), ("h", "min", 60), ("kg", "g", 1000))


class Generator(NamedTuple):
    """A kind of inputs, and the two answers to them: `make(rng)`, `answers`."""

    word: str
    make: Callable[[Rng], str]
    answers: tuple[Callable[[str], str], Callable[[str], str]]


def _letters(rng: Rng, least: int = 3, most: int = 6) -> str:
    size = rng.integers(least, most + 1)
    return "".join(rng.choice(list(string.ascii_lowercase[:12]), size))


def _numbers(sign: str, most: int = 60) -> Callable[[Rng], str]:
    return lambda rng: sign.join(map(str, sorted(rng.integers(1, most, 2))[::-1]))


def _of_two(sign: str, answer: Callable[[int, int], int]) -> Callable[[str], str]:
    return lambda text: str(answer(*map(int, text.split(sign))))


def _table(rng: Rng) -> str:
    names = rng.choice(list("abcdefgh"), 3, replace=False)
    pairs = [f"{name}{rng.integers(10)}" for name in names]
    return f"{' '.join(pairs)} {rng.choice(names)}"


def _looked_up(text: str) -> str:
    *pairs, asked = text.split()
    return next(pair[1] for pair in pairs if pair[0] == asked)


def _date(rng: Rng) -> str:
    year, month, day = (
        rng.integers(1950, 2050),
        rng.integers(1, 13),
        rng.integers(1, 29),
    )
    return f"{year}-{month:02d}-{day:02d}"


def _written_date(text: str) -> str:
    year, month, day = text.split("-")
    return f"{int(day)} {_MONTHS[int(month) - 1]} {year}"


def _unit(rng: Rng) -> str:
    large, small, _ = _UNITS[rng.integers(len(_UNITS))]
    return f"{rng.integers(1, 200)} {large} {small}"


def _converted(text: str) -> str:
    number, large, small = text.split()
    factor = next(f for a, b, f in _UNITS if (a, b) == (large, small))
    return str(int(number) * factor)


def _opened(rng: Rng) -> str:
    return "".join(rng.choice(list(_BRACKETS), rng.integers(3, 7)))


GENERATORS = (
    Generator(
        "sort",
        _letters,
        (lambda x: "".join(sorted(x)), lambda x: "".join(sorted(x))[::-1]),
    ),
    Generator("turn", _letters, (lambda x: x[::-1], lambda x: x[1:] + x[0])),
    Generator(
        "sum",
        _numbers("+"),
        (_of_two("+", int.__add__), _of_two("+", lambda a, b: (a + b) % 10)),
    ),
    Generator("edit", _letters, (lambda x: x.translate(_EDIT), lambda x: x + x[0])),
    Generator(
        "close",
        _opened,
        (
            lambda x: "".join(map(_BRACKETS.get, x[::-1])),
            lambda x: "".join(map(_BRACKETS.get, x)),
        ),
    ),
    Generator(
        "date",
        _date,
        (_written_date, lambda x: "/".join(str(int(p)) for p in x.split("-")[::-1])),
    ),
    Generator(
        "find",
        _table,
        (_looked_up, lambda x: str(x[:-2].split().index(x[-1] + _looked_up(x)) + 1)),
    ),
    Generator("unit", _unit, (_converted, lambda x: f"{_converted(x)} {x.split()[2]}")),
)
# Word and dialect, in the order in which clients take them up.
TASKS = tuple(f"{g.word} {'ab'[i]}" for i in (0, 1) for g in GENERATORS)


def make(rng: Rng, task: str, number: int) -> list[Example]:
    """Examples of a task, no two of them alike.

    Raises `ValueError` where a task has not so many.
    """
    word, dialect = task.split()
    generator = next(g for g in GENERATORS if g.word == word)
    answer = generator.answers["ab".index(dialect)]
    found: dict[str, None] = {}
    for _ in range(50 * number):
        found.setdefault(generator.make(rng))
        if len(found) == number:
            return [Example(f"{word} {x} =", (answer(x),)) for x in found]
    raise ValueError(f"task '{task}' has fewer than {number} examples")
