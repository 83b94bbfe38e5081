"""Personalised models in Hugging Face's forms: PEFT adapters, and whole checkpoints."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from potara_jax.adapters import folders, lora, peft
from potara_jax.adapters.lora import Adapter, Entry, Params, Site, is_factors
from potara_jax.models import weights
from potara_jax.models.weights import Table


class Form(NamedTuple):
    """How a model and its adapters are written.

    table: where its parameters are stored; None: a model that is not in Hugging Face's
      library, whose modules PEFT names as they are named here, with dots.
    config: its `config.json`.
    files: what else belongs to it, texts by name.
    sites, scale: of the adapters.
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
    """What belongs to a checkpoint beside its weights: tokenizer, preprocessor."""
    found = (folder / name for name in _FILES if (folder / name).is_file())
    return {path.name: _text(path) for path in found}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 ({error}); download it again") from None


_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "preprocessor_config.json",
)


def renamed(adapter: Adapter, form: Form) -> Adapter:
    """One client's adapter by PEFT's paths, with the scale in `b`; NumPy, float32.

    A module that the model scans over its layers becomes one a layer.
    """
    found: dict[str, Entry] = {}
    for path, entry in adapter.items():
        if is_factors(entry):
            found |= _layers(path, entry, form)
        else:
            found |= _whole(path, entry, form)
    return found


def _layers(path: str, entry: Entry, form: Form) -> dict[str, Entry]:
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
    """PEFT's name of a module of the user's own model."""
    if form.sites[path].stack:
        raise ValueError(
            f"'{path}' is scanned over layers, which have no names in PEFT: fold it"
        )
    return path.replace("/", ".")


def _whole(path: str, entry: Entry, form: Form) -> dict[str, Entry]:
    if form.table is None:
        name = path.replace("/", ".")
        return {name: {k: np.asarray(x, np.float32) for k, x in entry.items()}}
    made: Entry = {}
    for parameter, x in entry.items():
        x = np.asarray(x, np.float32)
        stored = weights.stored_as(f"{path}/{parameter}", x.shape, form.table)
        module, _, name = stored.names[0].rpartition(".")
        made[name] = np.ascontiguousarray(stored.kind.there(x))
    return {module: made}


def write_adapter(
    folder: Path, adapter: Adapter, form: Form, *, base: str, **how
) -> None:
    """A client's adapter as PEFT has it, for `base`; `how` as in `peft.write`."""
    config = {"base_model_name_or_path": base, "task_type": form.task}
    peft.write(folder, renamed(adapter, form), config, **how)


def write_folded(
    folder: Path, base: Params, adapter: Adapter, form: Form, *, dtype: str = "float32"
) -> None:
    """The base with a client's adapter in it, as a checkpoint of its own; one that is
    there is replaced.
    """
    folded = lora.fold(base, adapter, form.sites, scale=form.scale)
    with folders.appearing(folder) as beside:
        _write(beside, folded, form, dtype)


def write_base(
    folder: Path, params: Params, form: Form, *, dtype: str = "float32"
) -> None:
    """A whole checkpoint.

    Raises `ValueError` where the folder is there and holds anything else than that.
    """
    with folders.appearing(folder) as beside:
        _write(beside, params, form, dtype)
        if folder.exists() and not _same(beside, folder):
            raise ValueError(
                f"{folder} is there already and is no copy of this base; name another "
                "--out, or remove it with the adapters that are for it"
            )


def check_folded(folder: Path, *, overwrite: bool) -> None:
    """Raise `ValueError` where a folder cannot be written or be replaced."""
    own = {weights.CONFIG, weights.WEIGHTS, *_FILES}
    how = {"what": "whole model", "marker": weights.CONFIG, "own": own}
    folders.check_free(folder, **how, overwrite=overwrite)


def _write(folder: Path, params: Params, form: Form, dtype: str) -> None:
    for name, text in form.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    config = json.loads(json.dumps(form.config)) | {"torch_dtype": dtype}
    weights.save(folder, params, form.table, config, dtype=dtype)


def _same(one: Path, other: Path) -> bool:
    names, there = ({path.name for path in folder.iterdir()} for folder in (one, other))
    _, differ, unread = filecmp.cmpfiles(one, other, names, shallow=False)
    return names == there and not differ and not unread
