"""Tables, figures and pages of results.

The reports of jobs are imported when they are first used, since Matplotlib takes half a
second: `reports.study.report(...)`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potara_jax.reports import comparison, drawing, methods, simulation, study

__all__ = ["comparison", "drawing", "methods", "simulation", "study"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
