"""Traces of a few rounds, and a cache of compiled programs."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import jax

T = TypeVar("T")
_FIRST, _LAST = 1, 3  # round 0 compiles


def traced(
    rounds: Iterable[T], folder: Path | None, log: Callable[[str], object]
) -> Iterator[T]:
    """Yield the rounds, and trace the second to the fourth into a folder.

    The trace opens in TensorBoard (its profile plugin) and, from the file
    `perfetto_trace.json.gz`, in Perfetto.

    Args:
      rounds: any values, one per round.
      folder: None traces nothing.
      log: takes a line for the user.
    """
    return iter(rounds) if folder is None else _traced(rounds, folder, log)


def _traced(
    rounds: Iterable[T], folder: Path, log: Callable[[str], object]
) -> Iterator[T]:
    tracing = False
    try:
        for number, value in enumerate(rounds):
            yield value
            if number + 1 == _FIRST:
                jax.profiler.start_trace(folder, create_perfetto_trace=True)
                tracing = True
            if tracing and number == _LAST:
                _stop(folder, log)
                tracing = False
    finally:
        if tracing:
            _stop(folder, log)


def _stop(folder: Path, log: Callable[[str], object]) -> None:
    jax.profiler.stop_trace()
    log(f"profile: {folder}")


def keep_compiled(cache: Path) -> None:
    """Keep compiled programs between runs, unless JAX is set to keep them already.

    They are kept by processor, since machines may share a home folder. One that a
    killed run has left half-written is compiled again without a warning.
    """
    damaged = "Error (reading|writing) persistent compilation cache entry"
    warnings.filterwarnings("ignore", damaged, UserWarning)
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    folder = cache.expanduser() / "compiled" / _processor()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _processor() -> str:
    """A name shared by the machines that can run the same code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Feat"))), "")
    kind = f"{platform.machine()} {platform.processor()} {flags}"
    return hashlib.sha256(kind.encode()).hexdigest()[:12]
