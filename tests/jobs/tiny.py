"""Experiments at their smallest: as settings, and as words of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potara_jax.cli.main import main

DIGITS = {
    "cells.seeds": (3,),
    "cells.heterogeneity": ("0.5",),
    "cells.clients": 3,
    "lora.rank": 2,
    "lora.targets": ("query",),
    "training.steps": 2,
    "merging.samples": 4,
    "merging.grid_points": 3,
    "pretraining.steps": 3,
    "source.depth": 1,
}
TASKS = {
    "cells.seeds": (1,),
    "cells.clients": 2,
    "lora.rank": 2,
    "merging.samples": 4,
    "pretraining.steps": 1,
    "source.examples": 40,
}


def options(settings: Mapping[str, Any]) -> list[str]:
    """Settings as options; those of the source and of the job have no prefix."""
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, tuple) else (value,)
        words += ["--" + name.removeprefix("source."), *map(str, values)]
    return words


def potara(job: str, settings: Mapping[str, Any], *more: str | Path) -> int:
    """The exit status of a job on the digits."""
    return main([job, "digits", *options(settings), *map(str, more)])


def reproducible(value: Any) -> Any:
    """A JSON value without what was measured of the computer: seconds and memory."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in ("seconds", "memory")}
        return {k: reproducible(v) for k, v in kept.items()}
    return [reproducible(v) for v in value] if isinstance(value, list) else value
