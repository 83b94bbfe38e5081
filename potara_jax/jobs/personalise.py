"""Personalisation in one call: a model, clients' arrays, and nothing on disk."""

from __future__ import annotations

import jax
from rich.console import Console

from potara_jax import keys
from potara_jax.adapters.lora import Params
from potara_jax.clients.model_task import ModelTask, check_task
from potara_jax.data.federation import Federation
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Resources
from potara_jax.experiment.problems import arrays
from potara_jax.experiment.settings import (
    NATURAL,
    Cells,
    Communication,
    Compute,
    Federated,
    Local,
    Lora,
    Merging,
    Participation,
    Training,
)
from potara_jax.jobs.result import Result
from potara_jax.jobs.run import (
    check,
    configuration,
    display,
    python_warning,
    run_cells,
)
from potara_jax.jobs.table import Table
from potara_jax.runs.store import Cell, Memory

_CELL = Cell(NATURAL, 0)
_DEFAULT = Merging(curvature="empirical", methods=("uniform",))


def personalise(
    task: ModelTask,
    base: Params,
    clients: Federation,
    *,
    lora: Lora | None = None,
    federated: Federated | None = None,
    local: Local | None = None,
    training: Training | None = None,
    merging: Merging | None = None,
    participation: Participation | None = None,
    communication: Communication | None = None,
    compute: Compute | None = None,
    key: jax.Array,
    progress: bool = True,
) -> Result:
    """Train a federated and a local adapter for every client, and merge them.

    Nothing touches the disk. The same key gives the same bytes. Zou et al. 2026, arXiv
    2602.18658.

    Args:
      task: what the clients learn: `classification(model)`, or `objective(...)` of your
        own loss.
      base: the model's parameters, or all its variables
        (`{"params": ..., "batch_stats": ...}`); they stay frozen.
      clients: who holds what, see `Federation.of`.
      lora: the adapters.
      federated: the federated model: its algorithm and rounds.
      local: the rounds that each client trains alone.
      training: what a client does in a round.
      merging: how the models are merged. Default: `potara factor`, `potara core`,
        `uniform` and the default weight, which is `tempered_bayes` for a classification
        and `hermite_bayes` for another loss, with the empirical Fisher information.
      participation: who takes part in a round.
      communication: compression and privacy of uploads.
      compute: how many clients are trained at once.
      key: of everything drawn at random; consumed.
      progress: whether to show the rounds, the loss and the remaining time.

    Returns:
      The result: its `table()`, `adapters`, `report(folder)` and `export(folder)`.

    Raises:
      ValueError: a setting is invalid, LoRA cannot adapt the model, or labels are no
        classes of it.
    """
    keys.check(key)
    check_task(task)
    if not isinstance(clients, Federation):
        given = type(clients).__name__
        raise ValueError(
            f"clients is a {given}: make it by Federation.of(clients, ...)"
        )
    experiment = Experiment(
        name="personalise",
        make_problem=lambda experiment, _: arrays.problem(
            experiment, task, base, {_CELL: clients}
        ),
        cells=Cells((0,), (NATURAL,), len(clients.train.count)),
        natural=True,
        lora=Lora() if lora is None else lora,
        federated=Federated() if federated is None else federated,
        local=Local() if local is None else local,
        training=Training() if training is None else training,
        merging=_DEFAULT if merging is None else merging,
        participation=Participation() if participation is None else participation,
        communication=Communication() if communication is None else communication,
        compute=Compute() if compute is None else compute,
    )
    job, console = Table(), Console(stderr=True)
    check(experiment, job)
    return run_cells(
        experiment,
        job,
        Memory(python_warning),
        Resources(),
        display(experiment, job, console, progress=progress),
        configuration(experiment, job),
        key_of=lambda cell: key,
    )
