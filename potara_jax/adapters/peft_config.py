"""What an `adapter_config.json` of Hugging Face PEFT says about its adapter.

The rank and the scale of every module, by PEFT's own rules (peft 0.21), and which
features are not LoRA as it is here, `y = x W + s (x a) b`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

Config = dict[str, Any]

_LARGEST = 1e30  # of an alpha; float32 must hold its products
_LORA_DEFAULT = 8  # PEFT's, for `r` and for `lora_alpha`
_KEPT = ("base_model_name_or_path", "revision", "task_type", "auto_mapping")
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
_KINDS = {
    "rank_pattern": dict,
    "alpha_pattern": dict,
    "modules_to_save": list,
    "target_modules": list | str,
}
_UNSUPPORTED = {
    "use_dora": "DoRA, which also rescales the base's columns",
    "lora_bias": "a bias beside the factors",
    "layer_replication": "layers that are repeated",
    "megatron_config": "Megatron's parallel layers",
    "trainable_token_indices": "tokens of the embedding",
    "target_parameters": "parameters that are no linear layers",
    "alora_invocation_tokens": "activated LoRA, which starts at a token",
    "use_qalora": "QA-LoRA, which pools the inputs",
    "use_bdlora": "block-diagonal factors",
    "arrow_config": "Arrow, which routes between adapters",
    "kasa_config": "KaSA, which changes the base's weights",
    "monteclora_config": "sampled factors",
}


def check_config(config: Config, where: str) -> None:
    """Raise `ValueError` for what is no plain LoRA, naming the field and the mend."""
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


def _check_kinds(config, where) -> None:
    for field, kind in _KINDS.items():
        value = config.get(field)
        names = value if isinstance(value, list) else ()
        good = isinstance(value, kind) and all(isinstance(x, str) for x in names)
        if value is not None and not good:
            raise ValueError(
                f"{where}: {field} is {value!r}, which PEFT does not write; copy it "
                "again"
            )


def _check_features(config, where) -> None:
    for field, meaning in _UNSUPPORTED.items():
        if config.get(field):
            raise ValueError(
                f"{where}: {field} is set ({meaning}): this is not a plain LoRA; "
                f"train without {field}"
            )
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise ValueError(
            f"{where}: init_lora_weights is {start!r}, which changes the base's "
            "weights; save with path_initial_model_for_weight_conversion in PEFT, "
            "which makes it a plain LoRA"
        )


def module_rank(config: Config, path: str, where: str) -> int:
    """The rank that the configuration gives a module, `rank_pattern` included."""
    rank = _of_module(config, path, "r", "rank_pattern", where)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"{where}: the rank of '{path}' is {rank!r}, not 1 or more")
    return rank


def module_scale(config: Config, path: str, where: str) -> float:
    """The factor `s` of a module: `alpha / r`, with rsLoRA `alpha / sqrt(r)`."""
    rank = module_rank(config, path, where)
    alpha = _of_module(config, path, "lora_alpha", "alpha_pattern", where)
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not number or not abs(alpha) < _LARGEST:
        raise ValueError(f"{where}: lora_alpha of '{path}' is {alpha!r}, no number")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(config, path, field, pattern_field, where) -> Any:
    """A module's value: that of the first pattern that matches the path's end."""
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
            f"{where} has {pattern!r}, which is no regular expression: {error.msg}"
        ) from None


def whole_module(config: Config, key: str) -> tuple[str, str] | None:
    """The module of `modules_to_save` that a parameter is of, and its name there."""
    parts = key.split(".")
    for end in range(1, len(parts)):
        path = ".".join(parts[:end])
        if names_cover(config.get("modules_to_save") or (), [path]):
            return path, ".".join(parts[end:])
    return None


def names_cover(names: Iterable[str], paths: Iterable[str]) -> bool:
    """Whether every path is one of the names or ends with `.name`, as PEFT matches."""
    ends = tuple(f".{name}" for name in names)
    return all(f".{path}".endswith(ends) for path in paths)


def merged_config(configs: Sequence[Config]) -> Config:
    """What the merge of some adapters keeps of their configurations.

    The first base and task that are given, and the names of all adapted and whole
    modules where every adapter has them as names alone; else `plain_config` has paths.
    """
    kept = {field: _first(config.get(field) for config in configs) for field in _KEPT}
    kept["fan_in_fan_out"] = configs[0].get("fan_in_fan_out", False)
    for field in ("target_modules", "modules_to_save"):
        kept[field] = _all_names(configs, field)
    return kept


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value is not None), None)


def _all_names(configs, field) -> list[str] | None:
    narrowed = ("exclude_modules", "layers_to_transform")
    named = all(
        isinstance(c.get(field) or [], list) and not any(c.get(n) for n in narrowed)
        for c in configs
    )
    names = {name for c in configs for name in c.get(field) or ()} if named else ()
    return sorted(names) or None


def plain_config(
    config: Config, *, rank: int, targets: Sequence[str], whole: Sequence[str]
) -> Config:
    """The configuration of factors of one rank, with their scale in `b`.

    `targets`, `whole`: paths of the adapted modules, and of those trained whole. The
    names in `config` stay where they cover these; else the paths are the names, which
    PEFT matches to exactly these modules.
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
