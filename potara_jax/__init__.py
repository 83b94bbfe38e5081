"""Federated personalisation of LoRA-adapted models in JAX.

    import potara_jax as pj

    clients = pj.Federation.of([(images, labels), ...], heldout=30, test=0.2, key=key)
    task = pj.classification(model)
    result = pj.personalise(task, base, clients, lora=pj.Lora(rank=8), key=key)

Every name below is imported when it is first used: whoever only merges adapters does
not pay for data sets or figures.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potara_jax import experiment, jobs, merging
    from potara_jax.clients.adapters import train_adapters
    from potara_jax.clients.model_task import classification, objective
    from potara_jax.data.federation import Federation
    from potara_jax.experiment.experiment import Experiment
    from potara_jax.experiment.settings import (
        Cells,
        Communication,
        Compute,
        Federated,
        Local,
        Lora,
        Merging,
        Participation,
        Pretraining,
        Training,
    )
    from potara_jax.jobs import (
        Compare,
        Result,
        Simulate,
        Study,
        Table,
        Tune,
        personalise,
        run,
    )

__version__ = "0.2.0"

_SETTINGS = "potara_jax.experiment.settings"
_PLACES = {
    "Federation": "potara_jax.data.federation",
    "classification": "potara_jax.clients.model_task",
    "objective": "potara_jax.clients.model_task",
    "train_adapters": "potara_jax.clients.adapters",
    "Experiment": "potara_jax.experiment.experiment",
    **dict.fromkeys(("Cells", "Communication", "Compute", "Federated"), _SETTINGS),
    **dict.fromkeys(("Local", "Lora", "Merging", "Participation"), _SETTINGS),
    **dict.fromkeys(("Pretraining", "Training"), _SETTINGS),
    **dict.fromkeys(("Compare", "Result", "Simulate", "Study"), "potara_jax.jobs"),
    **dict.fromkeys(("Table", "Tune", "personalise", "run"), "potara_jax.jobs"),
}
_PACKAGES = ("experiment", "jobs", "merging")

__all__ = [
    "Cells",
    "Communication",
    "Compare",
    "Compute",
    "Experiment",
    "Federated",
    "Federation",
    "Local",
    "Lora",
    "Merging",
    "Participation",
    "Pretraining",
    "Result",
    "Simulate",
    "Study",
    "Table",
    "Training",
    "Tune",
    "classification",
    "experiment",
    "jobs",
    "merging",
    "objective",
    "personalise",
    "run",
    "train_adapters",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'potara_jax' has no attribute {name!r}")
    try:
        if name in _PACKAGES:
            return importlib.import_module(f"potara_jax.{name}")
        return getattr(importlib.import_module(_PLACES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("potara_jax"):
            raise
        raise ImportError(
            f"potara_jax.{name} needs {error.name}: "
            "pip install 'potara_jax[experiments]'"
        ) from error


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
