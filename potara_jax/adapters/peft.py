"""Adapter folders of Hugging Face PEFT, read and written without torch.

    adapter_config.json         ranks, scales, targets: see `peft_config`
    adapter_model.safetensors   base_model.model.<path>.lora_A.weight  [R, D]
                                base_model.model.<path>.lora_B.weight  [K, R]
                                base_model.model.<path>.<parameter>    whole modules

Dimension letters: `D` inputs, `K` outputs, `R` rank. A module's factors here are
`a = lora_A^T` and `b = s lora_B^T`: `b` includes the scale, so the delta is `a b`.
Paths keep PEFT's dots.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save

from potara_jax.adapters import folders, peft_config
from potara_jax.adapters.lora import Adapter, Entry, is_factors
from potara_jax.adapters.peft_config import Config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DTYPES = ("float32", "bfloat16", "float16")

_FILES = {CONFIG, WEIGHTS, "README.md"}
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<path>.+)\.lora_(?P<side>[AB])\.weight")
_NUMBERED = re.compile(r"\.\d+\.")  # after the name of a list of layers
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_UNSUPPORTED_KEYS = {
    "lora_magnitude_vector": "is DoRA's, which is not plain LoRA",
    "lora_embedding_": "adapts an embedding; leave embeddings out of target_modules "
    "(list them in modules_to_save to train them whole)",
    "lora_B.bias": "is a bias of the factors; train with lora_bias=False",
    "lora_A.bias": "is a bias of the factors; train with lora_bias=False",
}

_Tensors = dict[str, np.ndarray]


class PeftAdapter(NamedTuple):
    """An adapter that PEFT wrote.

    Attributes:
      path: its folder.
      adapter: factors `a` `[D, R]` and `b` `[R, K]`, with the scale in `b`, and the
        parameters of the modules in `modules_to_save`; NumPy, float32.
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


def read(
    folder: str | os.PathLike[str], *, allow_unknown_settings: bool = False
) -> PeftAdapter:
    """Read the adapter in a folder that PEFT wrote with `save_pretrained`.

    Args:
      folder: the folder.
      allow_unknown_settings: read an adapter although its configuration sets something
        that PEFT's plain LoRA does not have.

    Raises:
      ValueError: the folder holds no adapter, damaged files, values that are not
        finite, or anything but plain LoRA of linear layers. The message names the file
        or module, and what to do.
    """
    folder = Path(folder)
    config = _read_config(folder, allow_unknown_settings)
    stored = _read_tensors(folder)
    tensors = {name: _as_float32(name, x, folder) for name, x in stored.items()}
    factors, whole = _by_module(tensors, config, folder)
    scales = {}
    for path, sides in factors.items():
        _check_factors(path, sides, config, folder)
        scales[path] = peft_config.module_scale(config, path, f"{folder / CONFIG}")
    adapter = {path: _scaled(sides, scales[path]) for path, sides in factors.items()}
    dtype = widest([x.dtype.name for x in stored.values()])
    return PeftAdapter(folder, adapter | whole, config, dtype, scales)


def _read_config(folder: Path, allow_unknown: bool) -> Config:
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
    peft_config.check_config(config, str(path), allow_unknown=allow_unknown)
    return config


def _read_tensors(folder: Path) -> _Tensors:
    path = folder / WEIGHTS
    if not path.is_file():
        older = (folder / "adapter_model.bin").is_file()
        remedy = "save it again with safe_serialization=True" if older else "copy it"
        raise ValueError(f"{folder} holds no {WEIGHTS}; {remedy}")
    try:
        stored = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is cut short or damaged ({error}); copy it again"
        ) from None
    return {name: _tensor(path, name, view) for name, view in sorted(stored)}


def _tensor(path: Path, name: str, view: Mapping[str, Any]) -> np.ndarray:
    if view["dtype"] not in _STORED:
        raise ValueError(
            f"{path}: '{name}' is stored as {view['dtype']}; save the adapter as "
            f"{', '.join(DTYPES)}"
        )
    dtype = jnp.dtype(_STORED[view["dtype"]])
    return np.frombuffer(view["data"], dtype=dtype).reshape(view["shape"])


def _as_float32(name: str, stored: np.ndarray, folder: Path) -> np.ndarray:
    values = stored.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{folder / WEIGHTS}: '{name}' holds values that are not finite; the "
            "training diverged, so use an earlier checkpoint"
        )
    return values


def widest(dtypes: Sequence[str]) -> str:
    """The dtype that holds all values: float32 for bfloat16 and float16 together."""
    return functools.reduce(jnp.promote_types, map(jnp.dtype, dtypes)).name


def _by_module(
    tensors: _Tensors, config: Config, folder: Path
) -> tuple[dict[str, _Tensors], dict[str, Any]]:
    """The tensors of every adapted module, and of every module trained whole."""
    factors: dict[str, _Tensors] = {}
    whole: dict[str, _Tensors] = {}
    unknown: list[str] = []
    for key, value in tensors.items():
        name = key.removeprefix(_PREFIX)
        if name != key and (match := _FACTOR.fullmatch(name)):
            factors.setdefault(match["path"], {})[match["side"]] = value
        elif name != key and (place := _whole_module(config, name, tensors)):
            module, parameter = place
            whole.setdefault(module, {})[parameter] = value
        else:
            unknown.append(key)
    _check_known(unknown, folder)
    if not factors:
        raise ValueError(f"{folder / WEIGHTS} holds no LoRA factors; copy it again")
    return factors, whole


def _whole_module(
    config: Config, name: str, tensors: _Tensors
) -> tuple[str, str] | None:
    """The module that a tensor is of, and its name in it, if it is trained whole.

    With `ensure_weight_tying`, PEFT also writes what is tied to a module in
    `modules_to_save`, such as `lm_head.weight` beside `embed_tokens.weight`.
    """
    place = peft_config.whole_module(config, name)
    copied = peft_config.COPIES & set(name.split("."))
    if place or copied or not config.get("ensure_weight_tying"):
        return place
    value = tensors[f"{_PREFIX}{name}"]
    twins = (
        key
        for key, other in tensors.items()
        if peft_config.whole_module(config, key.removeprefix(_PREFIX))
        and np.array_equal(value, other)
    )
    module, _, parameter = name.rpartition(".")
    return (module, parameter) if next(twins, None) else None


def _check_known(unknown: Sequence[str], folder: Path) -> None:
    """Raise `ValueError` for tensors of unknown names, first what cannot be mended."""
    for key in unknown:
        for part, why in _UNSUPPORTED_KEYS.items():
            if part in key:
                raise ValueError(f"{folder / WEIGHTS}: '{key}' {why}")
    for key in unknown:
        raise ValueError(
            f"{folder / WEIGHTS}: '{key}' is neither "
            f"'{_PREFIX}<module>.lora_A.weight', its lora_B, nor in modules_to_save; "
            "save the adapter with PEFT's save_pretrained and "
            "save_embedding_layers=False"
        )


def _check_factors(path: str, sides: _Tensors, config: Config, folder: Path) -> None:
    where = f"{folder / WEIGHTS}: '{path}'"
    if set(sides) != {"A", "B"}:
        present, absent = ("A", "B") if "A" in sides else ("B", "A")
        raise ValueError(
            f"{where} has lora_{present} but no lora_{absent}; save it again"
        )
    first, second = sides["A"].shape, sides["B"].shape
    if 0 in (*first, *second):
        raise ValueError(
            f"{where} has empty factors {first} and {second}: DeepSpeed ZeRO-3 or FSDP "
            "saved a part only; gather the parameters before save_pretrained"
        )
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


def _scaled(sides: _Tensors, scale: float) -> dict[str, Any]:
    """A module's factors, with the scale in `b`."""
    b = np.float32(scale) * sides["B"].T
    return {"a": np.ascontiguousarray(sides["A"].T), "b": np.ascontiguousarray(b)}


# --- Several adapters together -------------------------------------------------------


def align(
    adapters: Sequence[PeftAdapter],
    *,
    missing: str = "refuse",
    allow_different_base: bool = False,
) -> tuple[Adapter, ...]:
    """Give adapters of one base the same modules, ready to be merged.

    Args:
      adapters: as `read` returns them.
      missing: what to do with a module that only some of them adapt: `refuse` it, or
        add a `zero` delta to the others. All must have the modules trained whole.
      allow_different_base: do not compare `base_model_name_or_path`.

    Returns:
      The adapters, all with the same modules, sorted by path.

    Raises:
      ValueError: the adapters do not fit together; the message names their folders.
    """
    if missing not in ("refuse", "zero"):
        raise ValueError(f"missing is {missing!r}: it must be 'refuse' or 'zero'")
    for other in adapters[1:]:
        if not allow_different_base:
            _check_same_base(adapters[0], other)
        _check_same_task(adapters[0], other)
    _check_one_naming(adapters)
    entries: dict[str, tuple[Path, Entry]] = {}
    for source in adapters:
        for path, entry in source.adapter.items():
            known = entries.setdefault(path, (source.path, entry))
            _check_same_shapes(path, known, (source.path, entry))
    return tuple(_completed(source, entries, missing) for source in adapters)


def _check_same_base(one: PeftAdapter, two: PeftAdapter) -> None:
    first, second = (peft_config.base_of(x.config) for x in (one, two))
    if first != second:
        alike = first[1] == second[1]
        names = [
            repr(name) if alike else f"{name!r} at revision {revision!r}"
            for name, revision in (first, second)
        ]
        raise ValueError(
            f"{one.path} is for base model {names[0]}, but {two.path} for {names[1]}; "
            "use --allow-different-base if these are the same weights"
        )


def _check_same_task(one: PeftAdapter, two: PeftAdapter) -> None:
    first, second = (x.config.get("task_type") for x in (one, two))
    if first and second and first != second:
        raise ValueError(
            f"{one.path} is for task {first!r}, but {two.path} for {second!r}; merge "
            "adapters of one task"
        )


def _check_one_naming(adapters: Sequence[PeftAdapter]) -> None:
    """Raise `ValueError` where two adapters name the same layers differently."""
    first, *others = [
        [path for path, entry in source.adapter.items() if is_factors(entry)]
        for source in adapters
    ]
    for source, paths in zip(adapters[1:], others, strict=True):
        if not set(first) & set(paths) and _renamed(first[0], paths[0]):
            raise ValueError(
                f"'{first[0]}' of {adapters[0].path} and '{paths[0]}' of {source.path} "
                "are layers of one model under two names: the adapters were saved from "
                "other wrappers of it, or by transformers 4 and 5; save both alike"
            )


def _renamed(one: str, two: str) -> bool:
    """Whether layers are named with another prefix, or as in transformers 4 and 5."""
    first, second = (f".{_NUMBERED.split(path)[0]}" for path in (one, two))
    if first == second:
        return False
    first, second = (x.replace(".encoder.layer", ".layers") for x in (first, second))
    return first.endswith(second) or second.endswith(first)


def _check_same_shapes(
    path: str, one: tuple[Path, Entry], two: tuple[Path, Entry]
) -> None:
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


def _completed(
    source: PeftAdapter, entries: Mapping[str, tuple[Path, Entry]], missing: str
) -> Adapter:
    """The adapter with a zero delta for every module that it does not adapt."""
    adapter: Adapter = {}
    for path, (folder, entry) in sorted(entries.items()):
        can_be_zero = is_factors(entry)
        if path not in source.adapter and not (can_be_zero and missing == "zero"):
            option = ", or count it as unchanged (--missing zero)"
            raise ValueError(
                f"'{path}' is in {folder} but not in {source.path}: merge adapters of "
                f"the same modules{option if can_be_zero else ''}"
            )
        zeros: dict[str, Any] = {name: np.zeros_like(x) for name, x in entry.items()}
        adapter[path] = source.adapter.get(path, zeros)
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
    """Write an adapter that PEFT, transformers and vLLM load without conversion.

    All modules get the same rank (factors of a smaller one are padded with zeros, as
    vLLM supports a single rank) and scale 1. In float16, whose range is small, a power
    of two moves from one factor of a module to the other, so that their largest entries
    are alike; it changes no delta. The folder appears whole or not at all.

    Args:
      folder: the folder to write.
      adapter: one client's plain factors (`a` `[D, R]`, `b` `[R, K]`, whose delta is
        `a b` with no further scale) and whole modules, by PEFT's paths.
      config: what to keep of a configuration: `base_model_name_or_path`, `task_type`
        and the names in `target_modules` and `modules_to_save`; see
        `peft_config.merged_config`.
      dtype: of the tensors, one of `DTYPES`.
      overwrite: replace an adapter in a folder that holds nothing else.

    Raises:
      ValueError: the folder exists, factors are not matrices, or `dtype` cannot hold
        their values: they overflow, or are so small that it loses more than rounding.
    """
    folder = Path(folder)
    check_free(folder, overwrite=overwrite)
    factors = {path: entry for path, entry in adapter.items() if is_factors(entry)}
    whole = sorted(set(adapter) - set(factors))
    if not factors:
        raise ValueError(f"there are no factors to write to {folder}")
    rank = max(_checked_rank(path, entry) for path, entry in factors.items())
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: it must be {', '.join(DTYPES)}")
    adapter = _balanced(adapter) if dtype == "float16" else adapter
    tensors = {
        f"{_PREFIX}{path}.{name}": _stored(path, value, dtype)
        for path, entry in adapter.items()
        for name, value in _named(entry, rank).items()
    }
    written = peft_config.plain_config(
        config or {}, rank=rank, targets=sorted(factors), whole=whole
    )
    with folders.atomic_folder(folder) as new:
        (new / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        text = json.dumps(written, indent=2, sort_keys=True)
        (new / CONFIG).write_text(text + "\n", encoding="utf-8")


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Raise `ValueError` if an adapter cannot be written to a folder."""
    folders.check_free(
        folder, kind="PEFT adapter", marker=CONFIG, names=_FILES, overwrite=overwrite
    )


def _checked_rank(path: str, entry: Entry) -> int:
    if set(entry) != {"a", "b"} or entry["a"].ndim != 2 or entry["b"].ndim != 2:
        shapes = {name: tuple(value.shape) for name, value in entry.items()}
        raise ValueError(
            f"'{path}' has {shapes}: only plain factors of one client can be written"
        )
    return entry["a"].shape[1]


def _named(entry: Entry, rank: int) -> _Tensors:
    """A module's tensors under PEFT's names, padded to a rank."""
    if not is_factors(entry):
        return {name: np.asarray(value) for name, value in entry.items()}
    padding = ((0, rank - entry["a"].shape[1]), (0, 0))
    first, second = np.asarray(entry["a"]).T, np.asarray(entry["b"])
    return {
        "lora_A.weight": np.pad(first, padding),
        "lora_B.weight": np.pad(second, padding).T,
    }


def _balanced(adapter: Mapping[str, Entry]) -> Adapter:
    """The same deltas, with factors whose largest entries differ by less than four."""
    return {
        path: _with_equal_sizes(entry) if is_factors(entry) else entry
        for path, entry in adapter.items()
    }


def _with_equal_sizes(entry: Entry) -> dict[str, Any]:
    a, b = (np.asarray(entry[name], np.float32) for name in "ab")
    largest = np.abs(a).max(initial=0), np.abs(b).max(initial=0)
    if not (np.isfinite(largest).all() and min(largest) > 0):
        return {"a": a, "b": b}
    exponents = [int(np.frexp(x)[1]) for x in largest]
    shift = (exponents[1] - exponents[0]) // 2
    return {"a": np.ldexp(a, shift), "b": np.ldexp(b, -shift)}


def _stored(path: str, value: np.ndarray, dtype: str) -> np.ndarray:
    """The values in a dtype; raises `ValueError` where it cannot hold them."""
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(value.astype(jnp.dtype(dtype)))
    again = stored.astype(np.float32)
    if not np.isfinite(again).all():
        raise ValueError(
            f"'{path}' has values that {dtype} cannot hold; choose dtype float32, or "
            "other weights if they are not finite"
        )
    size = np.linalg.norm(value.astype(np.float64))
    error = np.linalg.norm(again.astype(np.float64) - value) / max(size, 1e-300)
    if error > float(jnp.finfo(dtype).eps):
        raise ValueError(
            f"'{path}' has values so small that {dtype} would change them by "
            f"{100 * error:.2g} %; choose dtype float32 or bfloat16"
        )
    return stored
