"""What is slow, and what is kept: traces of a few rounds, and compiled programs."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import jax

T = TypeVar("T")
_FIRST, _LAST = 1, 3  # the first round compiles


def traced(rounds: Iterable[T], folder: Path | None, note: Callable) -> Iterator[T]:
    """The rounds as they come; the second to the fourth are traced into a folder.

    The trace opens in TensorBoard (its profile plugin) and, from the file
    `perfetto_trace.json.gz`, in Perfetto. None: nothing is traced.
    """
    tracing = False
    try:
        for place, each in enumerate(rounds):
            yield each
            if folder and place + 1 == _FIRST:
                jax.profiler.start_trace(folder, create_perfetto_trace=True)
                tracing = True
            if tracing and place == _LAST:
                _stop(folder, note)
                tracing = False
    finally:
        if tracing:
            _stop(folder, note)


def _stop(folder: Path, note: Callable) -> None:
    jax.profiler.stop_trace()
    note(f"profile: {folder}")


def keep_compiled(cache: Path) -> None:
    """Keep compiled programs between runs, unless JAX is told already where to."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    folder = cache.expanduser() / "compiled" / _processor()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _processor() -> str:
    """A name for machines that can run the same code: a home may be shared by many."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Feat"))), "")
    kind = f"{platform.machine()} {platform.processor()} {flags}"
    return hashlib.sha256(kind.encode()).hexdigest()[:12]
