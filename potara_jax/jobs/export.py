"""Clients' models in Hugging Face's formats, for PEFT, transformers and vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax

from potara_jax.adapters import peft
from potara_jax.adapters.lora import Adapter, Params
from potara_jax.experiment.problem import Problem
from potara_jax.models import publishing
from potara_jax.runs.store import Cell

Dtype = Literal["float32", "bfloat16", "float16"]


class ExportOptions(NamedTuple):
    """How models are written.

    folded: whole models that transformers loads, with the adapters in their weights;
      otherwise adapters that PEFT and vLLM load, and the base beside them. dtype: of
      the tensors. overwrite: replace existing models.
    """

    folded: bool = False
    dtype: Dtype = "float32"
    overwrite: bool = False


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
        raise ValueError("these models have no form to be written in")
    folders = check_free(out, list(adapters), clients, options)
    base = _base(problem.base, published, out, options)
    for (cell, client), folder in folders.items():
        adapter = jax.tree.map(lambda x, at=client: x[at], adapters[cell])
        _write(folder, adapter, problem.base, published, base, options)
    return len(folders)


def _base(
    params: Params, published: publishing.Form, out: Path, options: ExportOptions
) -> str:
    """What adapters are for: the checkpoint, or the base beside them."""
    if checkpoint := published.checkpoint:
        path = Path(checkpoint).expanduser()
        return str(path.resolve()) if path.is_dir() else checkpoint
    folder = out / "base"
    if not options.folded and published.table is not None:
        publishing.write_base(folder, params, published, dtype=options.dtype)
    return str(folder.resolve())


def _write(
    folder: Path,
    adapter: Adapter,
    params: Params,
    published: publishing.Form,
    base: str,
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
        overwrite=options.overwrite,
    )
