"""The order of classes by their names."""

from __future__ import annotations


def by_number(name: str) -> tuple[bool, int, str]:
    """A key that sorts whole numbers by their value, before all other names."""
    digits = name.removeprefix("-")
    number = digits.isascii() and digits.isdigit() and len(digits) < 19
    return not number, int(name) if number else 0, name
