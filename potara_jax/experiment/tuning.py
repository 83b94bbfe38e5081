"""What was chosen for each algorithm: learning rate and hyper-parameters."""

from __future__ import annotations

import json
from pathlib import Path

from potara_jax.clients.task import Task
from potara_jax.experiment import federating
from potara_jax.experiment.settings import Settings
from potara_jax.federated.interface import Algorithm

_CHOSEN = Path(__file__).with_name("tuned.json")


def chosen(name: str) -> dict:
    """The learning rate and hyper-parameters of an algorithm, where it has any."""
    table = json.loads(_CHOSEN.read_text(encoding="utf-8")) if _CHOSEN.exists() else {}
    return table.get(name, {})


def make(settings: Settings, task: Task, name: str) -> Algorithm:
    """A registered algorithm with what was chosen for it."""
    return federating.make(settings, task, name, **chosen(name))
