"""Personalised models in Hugging Face's formats: PEFT adapters, whole checkpoints."""

from __future__ import annotations

import filecmp
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from potara_jax.adapters import folders, lora, peft
from potara_jax.adapters.lora import Adapter, Entry, Params, Site, is_factors
from potara_jax.models import weights
from potara_jax.models.weights import Table

NEWEST = 5  # the major version of transformers whose names of modules are the default
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "generation_config.json",
    "preprocessor_config.json",
)


class Form(NamedTuple):
    """How a model and its adapters are written.

    Attributes:
      table: where its parameters are stored. None for a model that is not in Hugging
        Face's library; its adapters keep its modules' paths, with dots.
      config: its `config.json`.
      files: the texts of its other files, by name.
      sites: the adapted modules.
      scale: of the adapters.
      checkpoint: the folder or name that the model was loaded from, or None.
      task: PEFT's `task_type`.
    """

    table: Table | None
    config: dict[str, Any]
    files: Mapping[str, str]
    sites: Mapping[str, Site]
    scale: float
    checkpoint: str | None = None
    task: str | None = None


def read_files(folder: Path) -> dict[str, str]:
    """The texts of a checkpoint's tokenizer and preprocessor files, by name."""
    paths = (folder / name for name in _FILES if (folder / name).is_file())
    return {path.name: _text(path) for path in paths}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); download it again") from None


# --- Adapters ------------------------------------------------------------------------


def as_peft(adapter: Adapter, form: Form, *, transformers: int = NEWEST) -> Adapter:
    """One client's adapter by PEFT's paths, with the scale in `b`; NumPy, float32.

    A module that the model scans over its layers becomes one module per layer. The
    paths are the names of the modules in a major version of transformers.

    Args:
      adapter: of one client.
      form: how the model is written.
      transformers: the major version that loads it.
    """
    modules: Adapter = {}
    for path, entry in adapter.items():
        if is_factors(entry):
            modules |= _factors(path, entry, form)
        else:
            modules |= _whole(path, entry, form)
    if form.table is None:
        return modules
    names = functools.partial(form.table.modules, transformers=transformers)
    parts = (_split(entry, names(path)) for path, entry in modules.items())
    return {name: part for named in parts for name, part in named.items()}


def _split(entry: Entry, names: Sequence[str]) -> Adapter:
    """A module under its names, with equal parts of its outputs if it has several."""
    if len(names) == 1:
        return {names[0]: entry}

    def parts(key: str, x: Any) -> Sequence[Any]:
        if key == "a":
            return [x] * len(names)
        return np.split(x, len(names), axis=-1 if key == "b" else 0)

    split = {key: parts(key, x) for key, x in entry.items()}
    return {n: {key: x[i] for key, x in split.items()} for i, n in enumerate(names)}


def _factors(path: str, entry: Entry, form: Form) -> dict[str, dict[str, Any]]:
    if set(entry) != {"a", "b"}:
        raise ValueError(f"'{path}' has more than two factors: fold the model")
    a = np.asarray(entry["a"], np.float32)
    b = np.float32(form.scale) * np.asarray(entry["b"], np.float32)
    if form.table is None:
        return {_dotted(path, form): {"a": a, "b": b}}
    stored = weights.stored_as(f"{path}/kernel", form.sites[path].kernel, form.table)
    layers = zip(a, b, strict=True) if stored.stacked else [(a, b)]
    names = [name.removesuffix(".weight") for name in stored.names]
    return {n: {"a": a, "b": b} for n, (a, b) in zip(names, layers, strict=True)}


def _dotted(path: str, form: Form) -> str:
    """PEFT's name of a module of a model outside Hugging Face's library."""
    if form.sites[path].stack:
        raise ValueError(
            f"'{path}' is scanned over layers, which PEFT cannot name: fold the model"
        )
    return path.replace("/", ".")


def _whole(path: str, entry: Entry, form: Form) -> dict[str, dict[str, Any]]:
    values = {name: np.asarray(x, np.float32) for name, x in entry.items()}
    if form.table is None:
        return {path.replace("/", "."): values}
    modules: dict[str, dict[str, Any]] = {}
    for parameter, x in values.items():
        stored = weights.stored_as(f"{path}/{parameter}", x.shape, form.table)
        module, _, name = stored.names[0].rpartition(".")
        tensor = np.ascontiguousarray(stored.conversion.to_file(x))
        modules.setdefault(module, {})[name] = tensor
    return modules


def write_adapter(
    folder: Path,
    adapter: Adapter,
    form: Form,
    *,
    base: str | None,
    dtype: str = "float32",
    transformers: int = NEWEST,
    overwrite: bool = False,
) -> None:
    """Write a client's adapter as PEFT does.

    Args:
      folder: the folder to write.
      adapter: one client's.
      form: the model's.
      base: the name or folder of the base model, or None.
      dtype: of the tensors.
      transformers: the major version that loads it, whose names of modules it gets.
      overwrite: replace an adapter in the folder.

    Raises:
      ValueError: the adapter cannot be written, see `peft.write`, or has more than two
        factors.
    """
    config = {"base_model_name_or_path": base, "task_type": form.task}
    modules = as_peft(adapter, form, transformers=transformers)
    peft.write(folder, modules, config, dtype=dtype, overwrite=overwrite)


# --- Whole models --------------------------------------------------------------------


def write_folded(
    folder: Path, base: Params, adapter: Adapter, form: Form, *, dtype: str = "float32"
) -> None:
    """Write the base with a client's adapter folded in, replacing the folder."""
    folded = lora.fold(base, adapter, form.sites, scale=form.scale)
    with folders.atomic_folder(folder) as new:
        _write(new, folded, form, dtype)


def write_base(
    folder: Path, params: Params, form: Form, *, dtype: str = "float32"
) -> None:
    """Write a whole checkpoint.

    Args:
      folder: of the checkpoint.
      params: of the model.
      form: how the model is written.
      dtype: of the tensors.

    Raises:
      ValueError: the folder exists and holds anything but this checkpoint.
    """
    with folders.atomic_folder(folder) as new:
        _write(new, params, form, dtype)
        if folder.exists() and not _same(new, folder):
            raise ValueError(
                f"{folder} already exists and is not a copy of this base; choose "
                "another folder, or remove it with the adapters for it"
            )


def check_folded(folder: Path, *, overwrite: bool) -> None:
    """Raise `ValueError` if a whole model cannot be written to a folder."""
    folders.check_free(
        folder,
        kind="whole model",
        marker=weights.CONFIG,
        names={weights.CONFIG, weights.WEIGHTS, *_FILES},
        overwrite=overwrite,
    )


def _write(folder: Path, params: Params, form: Form, dtype: str) -> None:
    if form.table is None:
        raise ValueError(
            "a model outside Hugging Face's library has no checkpoint format; write "
            "its adapters instead"
        )
    for name, text in form.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    config = json.loads(json.dumps(form.config)) | {"torch_dtype": dtype}
    weights.save(folder, params, form.table, config, dtype=dtype)


def _same(one: Path, other: Path) -> bool:
    names, others = (
        {path.name for path in folder.iterdir()} for folder in (one, other)
    )
    _, differ, unread = filecmp.cmpfiles(one, other, names, shallow=False)
    return names == others and not differ and not unread
