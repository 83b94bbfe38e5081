"""Errors of other software, in the lines of ours."""

from __future__ import annotations

import textwrap


def brief(error: Exception) -> str:
    """An error's message on one line of at most 160 characters."""
    return textwrap.shorten(str(error), 160, placeholder="...")
