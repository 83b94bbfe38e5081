"""Clients' models in Hugging Face's formats, for PEFT, transformers and vLLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters import lora, peft
from potara_jax.adapters.lora import Adapter, Params
from potara_jax.clients.task import LOGIT_BIAS
from potara_jax.data.federation import take
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.types import check_types, is_of
from potara_jax.models import publishing
from potara_jax.runs.store import Cell

Dtype = Literal["float32", "bfloat16", "float16"]
Transformers = Literal[4, 5]
_FEW = 2  # examples that show whether two models are the same


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """How models are written.

    Attributes:
      folded: whole models that transformers loads, with the adapters in their weights;
        otherwise adapters that PEFT and vLLM load, and the base beside them.
      dtype: of the tensors.
      transformers: the major version that loads the adapters; a ViT's modules have
        other names in 4 and 5.
      overwrite: replace existing models.
    """

    folded: bool = False
    dtype: Dtype = "float32"
    transformers: Transformers = 5
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_types(self)


def check_free(
    out: Path, cells: Sequence[Cell], clients: Sequence[int], options: ExportOptions
) -> dict[tuple[Cell, int], Path]:
    """The folder of every client's model.

    Args:
      out: the folder of all models.
      cells: of the run.
      clients: their numbers.
      options: how models are written.

    Raises:
      ValueError: a folder exists and may not be replaced, or holds something else.
    """
    folders = {
        (cell, client): out / cell.name / f"client-{client:03d}"
        for cell in cells
        for client in clients
    }
    check = publishing.check_folded if options.folded else peft.check_free
    for folder in folders.values():
        check(folder, overwrite=options.overwrite)
    return folders


def write_models(
    problem: Problem,
    adapters: Mapping[Cell, Adapter],
    out: Path,
    *,
    clients: Sequence[int],
    options: ExportOptions,
) -> int:
    """Write some clients' models of every cell; returns their number.

    Adapters are `[C, ...]`. Below `out`, writes `CELL/client-000` and so on, and `base`
    unless the model is a checkpoint. A bias of the logits becomes one of the model's
    head.

    Args:
      problem: with its base, and how to write it.
      adapters: every client's, by cell.
      out: the folder of all models.
      clients: the numbers of those to write.
      options: how models are written.

    Raises:
      ValueError: models cannot be exported, or folders cannot be written.
    """
    published = problem.form
    if published is None:
        raise ValueError("this problem gives its models no form to be exported in")
    _check_clients(clients, adapters)
    folders = check_free(out, list(adapters), clients, options)
    base = _base(problem.base, published, out, options)
    for (cell, client), folder in folders.items():
        adapter = jax.tree.map(lambda x, at=client: x[at], adapters[cell])
        adapter = _with_bias_in_head(problem, adapter)
        _write(folder, adapter, problem.base, published, base, options)
    return len(folders)


def _with_bias_in_head(problem: Problem, adapter: Adapter) -> Adapter:
    """A client's adapter, whose bias of the logits is that of a module trained whole.

    The head is the module with a bias of this shape that gives the same logits.
    """
    if LOGIT_BIAS not in adapter:
        return adapter
    bias = adapter[LOGIT_BIAS]["bias"]
    bare = {path: entry for path, entry in adapter.items() if path != LOGIT_BIAS}
    expected = _some_logits(problem, adapter)
    for path in _modules_with_bias(problem.base, bias.shape):
        head = bare.get(path) or lora.trained_modules(problem.base, [path])[path]
        if lora.is_factors(head):
            continue
        folded = bare | {path: head | {"bias": head["bias"] + bias}}
        if np.allclose(_some_logits(problem, folded), expected, rtol=1e-3, atol=1e-3):
            return folded
    raise ValueError(
        "the model has no head with a bias that the clients' class shares can be added "
        "to: export a method without label prior"
    )


def _modules_with_bias(base: Params, shape: tuple[int, ...]) -> list[str]:
    """The paths of the base's modules that have a bias of a shape, the last first."""
    flat = lora.flat_params(base)
    paths = [k for k, x in flat.items() if k.endswith("/bias") and x.shape == shape]
    return [path.removesuffix("/bias") for path in reversed(paths)]


def _some_logits(problem: Problem, adapter: Adapter) -> jax.Array:
    """The logits of a model for a few examples."""
    assert problem.task.logits is not None, "a bias of the logits needs logits"
    pool = next(iter(problem.federations.values())).pool
    return problem.task.logits(problem.base, adapter, take(pool, jnp.arange(_FEW)))


def _check_clients(clients: Sequence[int], adapters: Mapping[Cell, Adapter]) -> None:
    """Raise `ValueError` for a client that is not among those of every cell."""
    number = min(len(jax.tree.leaves(adapter)[0]) for adapter in adapters.values())
    if not isinstance(clients, Sequence) or isinstance(clients, str):
        raise ValueError(f"clients is {clients!r}: it must be a list, such as [0]")
    for client in clients:
        if not is_of(int, client) or not 0 <= client < number:
            raise ValueError(
                f"there is no client {client!r}: clients are numbered 0 to {number - 1}"
            )


def _base(
    params: Params, published: publishing.Form, out: Path, options: ExportOptions
) -> str | None:
    """What adapters are for: the checkpoint, or the base beside them; None for a model
    that has no checkpoint format.
    """
    if checkpoint := published.checkpoint:
        path = Path(checkpoint).expanduser()
        return str(path.resolve()) if path.is_dir() else checkpoint
    if published.table is None:
        return None
    folder = out / "base"
    if not options.folded:
        publishing.write_base(folder, params, published, dtype=options.dtype)
    return str(folder.resolve())


def _write(
    folder: Path,
    adapter: Adapter,
    params: Params,
    published: publishing.Form,
    base: str | None,
    options: ExportOptions,
) -> None:
    if options.folded:
        publishing.write_folded(folder, params, adapter, published, dtype=options.dtype)
        return
    publishing.write_adapter(
        folder,
        adapter,
        published,
        base=base,
        dtype=options.dtype,
        transformers=options.transformers,
        overwrite=options.overwrite,
    )
