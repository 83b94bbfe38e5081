"""Adapter folders of Hugging Face PEFT, in and out, without torch.

    adapter_config.json         ranks, scales, targets: see `peft_config`
    adapter_model.safetensors   base_model.model.<path>.lora_A.weight  [R, D]
                                base_model.model.<path>.lora_B.weight  [K, R]
                                base_model.model.<path>.<parameter>    whole modules

Dimension letters: `D` inputs, `K` outputs, `R` rank. Here a module's factors are
`a = lora_A^T` and `b = s lora_B^T`, the scale folded in, so that its delta is `a b`;
paths keep PEFT's dots.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save

from potara_jax.adapters import folders, peft_config
from potara_jax.adapters.lora import Adapter, Entry, is_factors
from potara_jax.adapters.peft_config import Config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_OWN_FILES = {CONFIG, WEIGHTS, "README.md"}
DTYPES = ("float32", "bfloat16", "float16")

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<path>.+)\.lora_(?P<side>[AB])\.weight")
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_REFUSED_KEYS = {
    "lora_magnitude_vector": "is DoRA's, which is not a plain LoRA",
    "lora_embedding_": "adapts an embedding, not a linear layer",
    "lora_B.bias": "is a bias of the factors; train with lora_bias=False",
    "lora_A.bias": "is a bias of the factors; train with lora_bias=False",
}


class PeftAdapter(NamedTuple):
    """An adapter as PEFT wrote it.

    path: its folder.
    adapter: factors `a` `[D, R]`, `b` `[R, K]` with the scale in `b`, and the
      parameters of modules in `modules_to_save`; NumPy, float32.
    config: `adapter_config.json`.
    dtype: the widest dtype in the file.
    scales: the scale `s` of every adapted module.
    """

    path: Path
    adapter: Adapter
    config: Config
    dtype: str
    scales: dict[str, float]


# --- Reading -------------------------------------------------------------------------


def read(folder: str | os.PathLike[str]) -> PeftAdapter:
    """The adapter in a folder that PEFT wrote (`save_pretrained`).

    Raises `ValueError`, which names the file or module and the mend, for a folder that
    holds no adapter, damaged files, anything but plain LoRA of linear layers, and
    values that are not finite.
    """
    folder = Path(folder)
    config = _read_config(folder)
    stored = _read_tensors(folder)
    tensors = {name: _as_float32(name, x, folder) for name, x in stored.items()}
    factors, whole = _sorted_out(tensors, config, folder)
    scales = {}
    for path, entry in factors.items():
        _check_factors(path, entry, config, folder)
        scales[path] = peft_config.module_scale(config, path, f"{folder / CONFIG}")
    adapter = {path: _folded(entry, scales[path]) for path, entry in factors.items()}
    dtype = widest([x.dtype.name for x in stored.values()])
    return PeftAdapter(folder, adapter | whole, config, dtype, scales)


def _read_config(folder: Path) -> Config:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one that PEFT wrote")
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} holds no {CONFIG}; name a folder that PEFT wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no JSON object; copy it again")
    peft_config.check_config(config, str(path))
    return config


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    path = folder / WEIGHTS
    if not path.is_file():
        older = (folder / "adapter_model.bin").is_file()
        mend = "save it again with safe_serialization=True" if older else "copy it"
        raise ValueError(f"{folder} holds no {WEIGHTS}; {mend}")
    try:
        stored = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is cut short or damaged ({error}); copy it again"
        ) from None
    return {name: _tensor(path, name, view) for name, view in sorted(stored)}


def _tensor(path, name, view) -> np.ndarray:
    if view["dtype"] not in _STORED:
        raise ValueError(
            f"{path}: '{name}' is stored as {view['dtype']}; save the adapter as "
            f"{', '.join(DTYPES)}"
        )
    dtype = jnp.dtype(_STORED[view["dtype"]])
    return np.frombuffer(view["data"], dtype=dtype).reshape(view["shape"])


def _as_float32(name, stored, folder) -> np.ndarray:
    values = stored.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{folder / WEIGHTS}: '{name}' holds values that are not finite; the "
            "training diverged, take an earlier checkpoint"
        )
    return values


def widest(dtypes: Sequence[str]) -> str:
    """The dtype that holds the values of all: float32 for both kinds of 16 bits."""
    return functools.reduce(jnp.promote_types, map(jnp.dtype, dtypes)).name


def _sorted_out(tensors, config, folder) -> tuple[dict[str, Entry], Adapter]:
    """The tensors of every adapted module, and of every module trained whole."""
    factors: dict[str, Entry] = {}
    whole: Adapter = {}
    for key, value in tensors.items():
        name = key.removeprefix(_PREFIX)
        if name != key and (match := _FACTOR.fullmatch(name)):
            factors.setdefault(match["path"], {})[match["side"]] = value
        elif name != key and (found := peft_config.whole_module(config, name)):
            whole.setdefault(found[0], {})[found[1]] = value
        else:
            raise ValueError(f"{folder / WEIGHTS}: '{key}' {_why_refused(key)}")
    if not factors:
        raise ValueError(f"{folder / WEIGHTS} holds no LoRA factors; copy it again")
    return factors, whole


def _why_refused(key: str) -> str:
    reasons = (why for part, why in _REFUSED_KEYS.items() if part in key)
    unknown = (
        f"is neither '{_PREFIX}<module>.lora_A.weight', its lora_B, nor in "
        "modules_to_save; save the adapter with PEFT's save_pretrained and "
        "save_embedding_layers=False"
    )
    return next(reasons, unknown)


def _check_factors(path, entry, config, folder) -> None:
    where = f"{folder / WEIGHTS}: '{path}'"
    if set(entry) != {"A", "B"}:
        there, lacking = ("A", "B") if "A" in entry else ("B", "A")
        raise ValueError(
            f"{where} has lora_{there} but no lora_{lacking}; save it anew"
        )
    first, second = entry["A"].shape, entry["B"].shape
    if len(first) != 2 or len(second) != 2:
        raise ValueError(
            f"{where} has factors {first} and {second}, not two matrices: only linear "
            "layers can be merged"
        )
    rank = peft_config.module_rank(config, path, str(folder / CONFIG))
    if not rank == first[0] == second[1]:
        raise ValueError(
            f"{where} has lora_A {first} and lora_B {second}, which do not fit rank "
            f"{rank} of {CONFIG}; copy both files of one adapter"
        )


def _folded(entry, scale) -> Entry:
    b = np.float32(scale) * entry["B"].T
    return {"a": np.ascontiguousarray(entry["A"].T), "b": np.ascontiguousarray(b)}


# --- Several adapters together -------------------------------------------------------


def together(
    adapters: Sequence[PeftAdapter],
    *,
    missing: str = "refuse",
    allow_different_base: bool = False,
) -> tuple[Adapter, ...]:
    """Adapters of one base with the same modules, ready to be merged.

    missing: `refuse` modules that only some adapt, or count them as `zero` deltas in
      the others. Modules that are trained whole must be in all.
    allow_different_base: do not compare `base_model_name_or_path`.

    Raises `ValueError`, which names the folders, for adapters that do not fit.
    """
    if missing not in ("refuse", "zero"):
        raise ValueError(f"missing is {missing!r}: it must be 'refuse' or 'zero'")
    for other in adapters[1:]:
        if not allow_different_base:
            _check_same_base(adapters[0], other)
        _check_same_task(adapters[0], other)
    entries: dict[str, tuple[Path, Entry]] = {}
    for source in adapters:
        for path, entry in source.adapter.items():
            known = entries.setdefault(path, (source.path, entry))
            _check_same_shapes(path, known, (source.path, entry))
    return tuple(_completed(source, entries, missing) for source in adapters)


def _check_same_base(one, two) -> None:
    first, second = map(_base_of, (one, two))
    if first != second:
        raise ValueError(
            f"{one.path} is for base model {first}, but {two.path} for {second}; "
            "--allow-different-base if these are the same weights"
        )


def _base_of(source: PeftAdapter) -> str:
    name, revision = map(source.config.get, ("base_model_name_or_path", "revision"))
    return f"{name!r} at revision {revision!r}" if revision else repr(name)


def _check_same_task(one, two) -> None:
    first, second = (x.config.get("task_type") for x in (one, two))
    if first and second and first != second:
        raise ValueError(
            f"{one.path} is for task {first!r}, but {two.path} for {second!r}; merge "
            "adapters of one task"
        )


def _check_same_shapes(path, one, two) -> None:
    first, second = _outer_shapes(one[1]), _outer_shapes(two[1])
    if first != second:
        raise ValueError(
            f"'{path}' is {first} in {one[0]}, but {second} in {two[0]}; merge "
            "adapters of one base model"
        )


def _outer_shapes(entry: Entry) -> str:
    if is_factors(entry):
        return f"{entry['a'].shape[0]} -> {entry['b'].shape[1]}"
    shapes = (f"{name} {value.shape}" for name, value in sorted(entry.items()))
    return f"trained whole with {', '.join(shapes)}"


def _completed(source, entries, missing) -> Adapter:
    """The adapter with a zero delta for every module that it does not adapt."""
    adapter = {}
    for path, (where, entry) in sorted(entries.items()):
        countable = is_factors(entry)
        if path not in source.adapter and not (countable and missing == "zero"):
            more = ", or count it as no change (--missing zero)"
            mend = more if countable else ""
            raise ValueError(
                f"'{path}' is in {where} but not in {source.path}: merge adapters of "
                f"the same modules{mend}"
            )
        zero = {name: np.zeros_like(value) for name, value in entry.items()}
        adapter[path] = source.adapter.get(path, zero)
    return adapter


# --- Writing -------------------------------------------------------------------------


def write(
    folder: str | os.PathLike[str],
    adapter: Mapping[str, Entry],
    config: Config | None = None,
    *,
    dtype: str = "float32",
    overwrite: bool = False,
) -> None:
    """Write an adapter that PEFT, transformers and vLLM load as it is.

    All modules have one rank (smaller ones are padded with zeros, as vLLM knows no
    others) and scale 1. The folder appears whole or not at all.

    adapter: one client's plain factors (`a` `[D, R]`, `b` `[R, K]`, their delta `a b`
      without a further scale) and whole modules, by PEFT's paths.
    config: what to keep: `base_model_name_or_path`, `task_type` and the names in
      `target_modules` and `modules_to_save`; see `peft_config.merged_config`.
    overwrite: replace an adapter that is there, in a folder that holds nothing else.

    Raises `ValueError` where the folder is there, for factors that are no matrices, and
    for values that are not finite in `dtype`.
    """
    folder = Path(folder)
    check_free(folder, overwrite=overwrite)
    factors = {path: entry for path, entry in adapter.items() if is_factors(entry)}
    whole = sorted(set(adapter) - set(factors))
    if not factors:
        raise ValueError(f"there are no factors to write to {folder}")
    rank = max(_checked_rank(path, entry) for path, entry in factors.items())
    tensors = {
        f"{_PREFIX}{path}.{name}": _stored(path, value, dtype)
        for path, entry in adapter.items()
        for name, value in _named(entry, rank).items()
    }
    written = peft_config.plain_config(
        config or {}, rank=rank, targets=sorted(factors), whole=whole
    )
    with folders.appearing(folder) as beside:
        (beside / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        text = json.dumps(written, indent=2, sort_keys=True)
        (beside / CONFIG).write_text(text + "\n", encoding="utf-8")


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Raise `ValueError` where a folder cannot be written or be replaced."""
    how = {"what": "PEFT adapter", "marker": CONFIG, "own": _OWN_FILES}
    folders.check_free(folder, **how, overwrite=overwrite)


def _checked_rank(path, entry) -> int:
    if set(entry) != {"a", "b"} or entry["a"].ndim != 2 or entry["b"].ndim != 2:
        shapes = {name: tuple(value.shape) for name, value in entry.items()}
        raise ValueError(
            f"'{path}' has {shapes}: only plain factors of one client can be written"
        )
    return entry["a"].shape[1]


def _named(entry: Entry, rank: int) -> dict[str, np.ndarray]:
    """The tensors of a module as PEFT names them, padded to a rank."""
    if not is_factors(entry):
        return {name: np.asarray(value) for name, value in entry.items()}
    more = ((0, rank - entry["a"].shape[1]), (0, 0))
    first, second = np.asarray(entry["a"]).T, np.asarray(entry["b"])
    return {
        "lora_A.weight": np.pad(first, more),
        "lora_B.weight": np.pad(second, more).T,
    }


def _stored(path, value, dtype) -> np.ndarray:
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: it must be {', '.join(DTYPES)}")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(value.astype(jnp.dtype(dtype)))
    if not np.isfinite(stored.astype(np.float32)).all():
        raise ValueError(
            f"'{path}' has values that {dtype} cannot hold; choose dtype float32, or "
            "other weights if they are not finite"
        )
    return stored
