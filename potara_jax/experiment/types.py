"""The types of settings: what a value must be, from its field's annotation.

Settings come from Python, from JSON and from the command line. Whoever makes a group of
settings, its fields are checked in one way.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

_WORDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    bool: ("True or False", "True or False"),
    Path: ("a path", "paths"),
    types.NoneType: ("None", "None"),
}


def check_types(group: Any, prefix: str = "") -> None:
    """Raise `ValueError` for the first field whose value is not of its type.

    Args:
      group: a dataclass.
      prefix: what its fields are called by, such as `lora.`.
    """
    for name, kind in types_of(group).items():
        value = getattr(group, name)
        if not is_of(kind, value):
            raise ValueError(
                f"{prefix}{name} is {value!r}: it must be {_expected(kind, value)}"
            )


def types_of(group: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    hints = typing.get_type_hints(type(group))
    return {field.name: hints[field.name] for field in dataclasses.fields(group)}


def is_of(kind: Any, value: Any) -> bool:
    """Whether a value is of a type; whole numbers are numbers, True and False not."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        return any(is_of(part, value) for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and _are_of(parts, value)
    if kind in (int, float):
        allowed = int if kind is int else (int, float)
        return isinstance(value, allowed) and not isinstance(value, bool)
    known = kind if origin is None else origin
    return not _is_checked(known) or isinstance(value, known)


def _is_checked(kind: Any) -> bool:
    """Whether values of a type can be told from others."""
    protocol = getattr(kind, "_is_protocol", False)
    return isinstance(kind, type) and kind is not Any and not protocol


def _are_of(parts: tuple[Any, ...], values: tuple[Any, ...]) -> bool:
    """Whether the items of a tuple are of its types, such as `(int, ...)`."""
    if parts[-1:] == (...,):
        return all(is_of(parts[0], value) for value in values)
    same = len(parts) == len(values)
    return same and all(map(is_of, parts, values))


def from_json(kind: Any, value: Any) -> Any:
    """A JSON value as a setting has it: lists are tuples, and texts may be paths."""
    if isinstance(value, list):
        parts = _tuple_of(kind)
        return tuple(from_json(parts[0], x) for x in value) if parts else value
    if isinstance(value, str) and not is_of(kind, value) and is_of(kind, Path(value)):
        return Path(value)
    return value


def _tuple_of(kind: Any) -> tuple[Any, ...]:
    """The types of a tuple's items, also of one that may be missing."""
    if typing.get_origin(kind) is tuple:
        return typing.get_args(kind)
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    each = map(_tuple_of, typing.get_args(kind) if union else ())
    return next(filter(None, each), ())


# --- Messages ------------------------------------------------------------------------


def _expected(kind: Any, value: Any) -> str:
    """What a value must be, with the value that was perhaps meant."""
    meant = _meant(kind, value)
    example = "" if meant is None else f", such as {meant!r}"
    return _words(kind) + example.replace(type(Path()).__name__, "Path")


def _words(kind: Any) -> str:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_words, parts))
    if origin is tuple:
        return f"a tuple of {_WORDS.get(parts[0], ('', _words(parts[0])))[1]}"
    name = getattr(origin or kind, "__name__", str(kind))
    return _WORDS[kind][0] if kind in _WORDS else f"a {name}"


def _meant(kind: Any, value: Any) -> Any:
    """The value in another form that the type allows; None if it has none."""
    forms: list[Callable[[Any], Any]] = [lambda x: (x,)]
    if isinstance(value, list):
        forms.append(tuple)
    if isinstance(value, str):
        forms += [Path, int, float]
    elif hasattr(value, "__index__") or isinstance(value, float):
        forms += [int, str]
    for form in forms:
        try:
            other = form(value)
        except (ValueError, OverflowError):
            continue
        if is_of(kind, other):
            return other
    return None
