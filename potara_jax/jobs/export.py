"""Clients' models in Hugging Face's formats, for PEFT, transformers and vLLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax

from potara_jax.adapters import peft
from potara_jax.adapters.lora import Adapter, Params
from potara_jax.experiment.problem import Problem
from potara_jax.experiment.types import check_types, is_of
from potara_jax.models import publishing
from potara_jax.runs.store import Cell

Dtype = Literal["float32", "bfloat16", "float16"]
Transformers = Literal[4, 5]


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """How models are written.

    folded: whole models that transformers loads, with the adapters in their weights;
      otherwise adapters that PEFT and vLLM load, and the base beside them. dtype: of
      the tensors. transformers: the major version that loads the adapters; a ViT's
      modules have other names in 4 and 5. overwrite: replace existing models.
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

    Raises `ValueError` if one exists and may not be replaced, or holds something else.
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
    unless the model is a checkpoint. Raises `ValueError` for models that cannot be
    exported, or folders that cannot be written.
    """
    published = problem.form
    if published is None:
        raise ValueError("this problem gives its models no form to be exported in")
    _check_clients(clients, adapters)
    folders = check_free(out, list(adapters), clients, options)
    base = _base(problem.base, published, out, options)
    for (cell, client), folder in folders.items():
        adapter = jax.tree.map(lambda x, at=client: x[at], adapters[cell])
        _write(folder, adapter, problem.base, published, base, options)
    return len(folders)


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
