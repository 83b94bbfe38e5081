"""`adapter_config.json` of Hugging Face PEFT: what it says about its adapter.

The rank and the scale of every module follow PEFT's rules (peft 0.21). Features beyond
plain LoRA, `y = x W + s (x a) b`, are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

Config = dict[str, Any]

_MAX_ALPHA = 1e30  # so that float32 holds its products
_LORA_DEFAULT = 8  # PEFT's default of `r` and of `lora_alpha`
_KEPT = ("base_model_name_or_path", "revision", "task_type", "auto_mapping")
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
# Fields that do not change what a trained adapter computes, or whose meaning is checked
# field by field.
_KNOWN = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
        "velora_config",
    }
)
# In names of what `save_embedding_layers=True` adds.
COPIES = frozenset({"modules_to_save", "original_module"})
_KINDS = {
    "rank_pattern": dict,
    "alpha_pattern": dict,
    "modules_to_save": list,
    "target_modules": list | str,
}
_UNSUPPORTED = {
    "use_dora": "DoRA, which also rescales the base's columns",
    "lora_bias": "a bias in addition to the factors",
    "layer_replication": "layers that are repeated",
    "megatron_config": "Megatron's parallel layers",
    "trainable_token_indices": "tokens of the embedding",
    "target_parameters": "parameters outside linear layers",
    "alora_invocation_tokens": "activated LoRA, which starts at a token",
    "use_qalora": "QA-LoRA, which pools the inputs",
    "use_bdlora": "block-diagonal factors",
    "arrow_config": "Arrow, which routes between adapters",
    "kasa_config": "KaSA, which changes the base's weights",
    "monteclora_config": "sampled factors",
}


def check_config(config: Config, where: str, *, allow_unknown: bool = False) -> None:
    """Check that a configuration is of plain LoRA.

    Args:
      config: `adapter_config.json`.
      where: its path, for the error.
      allow_unknown: accept settings that are not known to be of plain LoRA.

    Raises:
      ValueError: it is of something else; names the field and what to do.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(
            f"{where}: peft_type is {kind!r}, not 'LORA': only LoRA adapters can be "
            "read"
        )
    if config.get("bias", "none") != "none":
        raise ValueError(
            f"{where}: bias is {config['bias']!r}: trained biases cannot be merged; "
            "train with bias='none'"
        )
    _check_kinds(config, where)
    _check_features(config, where)
    if not allow_unknown:
        _check_known(config, where)


def _check_known(config: Config, where: str) -> None:
    """Raise `ValueError` where a setting is on whose meaning is not known."""
    known = _KNOWN | set(_UNSUPPORTED)
    unknown = sorted(k for k, value in config.items() if k not in known and value)
    if unknown:
        raise ValueError(
            f"{where} sets {', '.join(unknown)}, which PEFT 0.21's plain LoRA does not "
            "have; if this does not change what the adapter computes, use "
            "--allow-unknown-settings"
        )


def _check_kinds(config: Config, where: str) -> None:
    for field, kind in _KINDS.items():
        value = config.get(field)
        names = value if isinstance(value, list) else ()
        good = isinstance(value, kind) and all(isinstance(x, str) for x in names)
        if value is not None and not good:
            raise ValueError(
                f"{where}: {field} is {value!r}, which PEFT does not write; copy it "
                "again"
            )


def _check_features(config: Config, where: str) -> None:
    for field, meaning in _UNSUPPORTED.items():
        if config.get(field):
            raise ValueError(
                f"{where}: {field} is set ({meaning}): this is not plain LoRA; "
                f"train without {field}"
            )
    start = config.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in _PLAIN_STARTS:
        raise ValueError(
            f"{where}: init_lora_weights is {start!r}, which changes the base's "
            "weights; save with path_initial_model_for_weight_conversion in PEFT, "
            "which turns it into plain LoRA"
        )


def module_rank(config: Config, path: str, where: str) -> int:
    """The rank of a module, by `rank_pattern` or `r`.

    Args:
      config: the content of an `adapter_config.json`.
      path: of the module, in PEFT's names.
      where: the file, for the message.

    Raises:
      ValueError: what it says is no rank.
    """
    rank = _module_value(config, path, "r", "rank_pattern", where)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"{where}: the rank of '{path}' is {rank!r}, not 1 or more")
    return rank


def module_scale(config: Config, path: str, where: str) -> float:
    """The scale `s` of a module: `alpha / r`, with rsLoRA `alpha / sqrt(r)`.

    Args:
      config: the content of an `adapter_config.json`.
      path: of the module, in PEFT's names.
      where: the file, for the message.

    Raises:
      ValueError: `alpha` or the rank is no number.
    """
    rank = module_rank(config, path, where)
    alpha = _module_value(config, path, "lora_alpha", "alpha_pattern", where)
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not is_number or not abs(alpha) < _MAX_ALPHA:
        raise ValueError(f"{where}: lora_alpha of '{path}' is {alpha!r}, not a number")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _module_value(
    config: Config, path: str, field: str, pattern_field: str, where: str
) -> Any:
    """The value of the first pattern that matches the end of a path, or the field's."""
    patterns = config.get(pattern_field) or {}
    for pattern, value in patterns.items():
        if _matches(pattern, path, f"{where}: {pattern_field}"):
            return value
    return config.get(field, _LORA_DEFAULT)


def _matches(pattern: str, path: str, where: str) -> bool:
    try:
        return re.match(rf"(.*\.)?({pattern})$", path) is not None
    except re.error as error:
        raise ValueError(
            f"{where} has {pattern!r}, which is not a regular expression: {error.msg}"
        ) from None


def whole_module(config: Config, key: str) -> tuple[str, str] | None:
    """The module of `modules_to_save` that holds a parameter, and its name in it.

    None for the copies that `save_embedding_layers=True` adds.

    Args:
      config: the content of an `adapter_config.json`.
      key: the name of the parameter in the file.
    """
    parts = key.split(".")
    if COPIES & set(parts):
        return None
    for end in range(1, len(parts)):
        path = ".".join(parts[:end])
        if names_cover(config.get("modules_to_save") or (), [path]):
            return path, ".".join(parts[end:])
    return None


def names_cover(names: Iterable[str], paths: Iterable[str]) -> bool:
    """Whether every path is one of the names or ends with `.name`, as in PEFT."""
    ends = tuple(f".{name}" for name in names)
    return all(f".{path}".endswith(ends) for path in paths)


def base_of(config: Config) -> tuple[str | None, str]:
    """The name or path of the base, and its revision, each spelled in one way."""
    name = config.get("base_model_name_or_path")
    name = name.rstrip("/") or name if isinstance(name, str) else name
    return name, config.get("revision") or "main"


def merged_config(configs: Sequence[Config]) -> Config:
    """The configuration of a merge, for `plain_config`.

    It has the first base and task that any adapter names. It keeps the names of the
    adapted and whole modules if every adapter lists plain names; otherwise
    `plain_config` lists paths.
    """
    kept = {field: _first(config.get(field) for config in configs) for field in _KEPT}
    kept["fan_in_fan_out"] = configs[0].get("fan_in_fan_out", False)
    for field in ("target_modules", "modules_to_save"):
        kept[field] = _all_names(configs, field)
    return kept


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value is not None), None)


def _all_names(configs: Sequence[Config], field: str) -> list[str] | None:
    if not all(_lists_plain_names(config, field) for config in configs):
        return None
    names = {name for config in configs for name in config.get(field) or ()}
    return sorted(names) or None


def _lists_plain_names(config: Config, field: str) -> bool:
    narrowed = config.get("exclude_modules") or config.get("layers_to_transform")
    return isinstance(config.get(field) or [], list) and not narrowed


def plain_config(
    config: Config, *, rank: int, targets: Sequence[str], whole: Sequence[str]
) -> Config:
    """The configuration of an adapter with one rank, and the scale in `b`.

    Args:
      config: what to keep, see `merged_config`. Its names of modules stay if they cover
        `targets` and `whole`; otherwise their paths are listed, which PEFT matches to
        exactly these modules.
      rank: of all modules.
      targets: paths of the adapted modules.
      whole: paths of the modules trained whole.
    """

    return {
        "peft_type": "LORA",
        **{field: config.get(field) for field in _KEPT},
        "r": rank,
        "lora_alpha": rank,
        "target_modules": _names(config.get("target_modules"), targets),
        "modules_to_save": _names(config.get("modules_to_save"), whole) or None,
        "fan_in_fan_out": config.get("fan_in_fan_out", False),
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def _names(names: Sequence[str] | str | None, paths: Sequence[str]) -> list[str]:
    if isinstance(names, list) and names_cover(names, paths):
        return names if paths else []
    return list(paths)
