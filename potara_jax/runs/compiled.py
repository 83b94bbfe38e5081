"""Compiled programs, which must not take all memory maps that a process may have."""

from __future__ import annotations

from pathlib import Path

import jax

_MAPS = Path("/proc/self/maps")
_LIMIT = Path("/proc/sys/vm/max_map_count")


def forget_many() -> bool:
    """Forget what is compiled once it takes half of the memory maps that Linux allows.

    A program takes some, JAX keeps thousands of programs, and where no map is left the
    process dies. What is needed again is compiled again, or read from the cache. On
    other systems nothing is done.

    Returns:
      Whether programs were forgotten.
    """
    if not _MAPS.exists() or not _LIMIT.exists():
        return False
    many = 2 * _MAPS.read_bytes().count(b"\n") > int(_LIMIT.read_text())
    if many:
        jax.clear_caches()
    return many
