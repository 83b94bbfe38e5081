"""`potara inspect`: what a LoRA adapter that PEFT wrote holds, and who can load it."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from potara_jax.adapters import peft
from potara_jax.adapters.lora import Adapter, Entry, is_factors

# What vLLM accepts for --max-lora-rank, and its default.
_VLLM_RANKS, _VLLM_RANK = (1, 8, 16, 32, 64, 128, 256, 320, 512), 16


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show what a LoRA adapter that PEFT wrote holds, and who can load it."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The adapter's folder."""
    allow_unknown_settings: bool = False
    """Read an adapter although it has settings that PEFT's plain LoRA has not."""

    def __call__(self) -> None:
        """Print what the adapter holds."""
        inspect(self, Console())


def command(words: list[str]) -> tuple[Any, None]:
    """The type of the command."""
    return Inspect, None


def inspect(options: Inspect, console: Console) -> None:
    """Print what an adapter holds, with a row for every kind of module."""
    source = peft.read(
        options.folder, allow_unknown_settings=options.allow_unknown_settings
    )
    _print(console, _head(source))
    console.print(_table(source))
    _print(console, _tail(source))


def _print(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _head(source: peft.PeftAdapter) -> list[str]:
    return [
        f"base model: {source.config.get('base_model_name_or_path')}",
        f"task: {source.config.get('task_type')}",
        f"dtype: {source.dtype}",
    ]


def _tail(source: peft.PeftAdapter) -> list[str]:
    entries = source.adapter
    parameters = sum(x.size for entry in entries.values() for x in entry.values())
    return [
        *(_whole(path, e) for path, e in entries.items() if not is_factors(e)),
        f"parameters: {parameters:,}",
        f"vLLM: {vllm_support(source)}",
    ]


def _whole(path: str, entry: Entry) -> str:
    shapes = ", ".join(f"{name} {x.shape}" for name, x in entry.items())
    return f"trained whole: {path} ({shapes})"


def _table(source: peft.PeftAdapter) -> Table:
    kinds = _kinds(source.adapter)
    shared = _common_prefix(kinds)
    table = Table(title=shared.rstrip("."), title_justify="left", box=box.SIMPLE)
    table.caption = "norm: Frobenius, of the delta; effective: rank, exp(entropy)"
    table.add_column("module", no_wrap=True)
    for name in ("count", "in", "out", "rank", "scale", "norm", "effective"):
        table.add_column(name, justify="right", min_width=len(name))
    for kind, paths in kinds.items():
        cells = (str(len(paths)), *_cells(source, paths))
        table.add_row(Text(kind.removeprefix(shared)), *cells)
    return table


def _common_prefix(kinds: Iterable[str]) -> str:
    """The modules around all kinds, such as `model.layers.*.`."""
    columns = zip(*(kind.split(".")[:-1] for kind in kinds), strict=False)
    same = takewhile(lambda names: len(set(names)) == 1, columns)
    return "".join(f"{names[0]}." for names in same)


def _kinds(adapter: Adapter) -> dict[str, list[str]]:
    """The paths of the adapted modules, by the path with `*` for numbers."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in adapter:
        if is_factors(adapter[path]):
            kinds[re.sub(r"(?<=\.)\d+(?=\.)", "*", path)].append(path)
    return kinds


def _cells(source: peft.PeftAdapter, paths: Sequence[str]) -> list[str]:
    entries = [source.adapter[path] for path in paths]
    singular = [singular_values(entry) for entry in entries]
    return [
        _span([entry["a"].shape[0] for entry in entries]),
        _span([entry["b"].shape[1] for entry in entries]),
        _span([entry["a"].shape[1] for entry in entries]),
        _span([source.scales[path] for path in paths]),
        _span([float(np.linalg.norm(sigma)) for sigma in singular]),
        _span([effective_rank(sigma) for sigma in singular]),
    ]


def _span(values: Sequence[float]) -> str:
    low, high = map(_number, (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def singular_values(entry: Mapping[str, Any]) -> np.ndarray:
    """The singular values of a delta, `[R]`, from its factors."""
    core = _triangle(entry["a"]) @ _triangle(entry["b"].T).T
    return np.linalg.svd(core, compute_uv=False)


def _triangle(factor: Any) -> np.ndarray:
    """The triangular factor of a QR decomposition, in float64."""
    return np.asarray(np.linalg.qr(np.asarray(factor, np.float64), mode="r"))


def effective_rank(sigma: np.ndarray) -> float:
    """`exp(-sum p log p)`, where `p` are the singular values over their sum.

    Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    """
    share = sigma[sigma > 0] / max(sigma.sum(), 1e-30)
    return float(np.exp(-(share * np.log(share)).sum())) if share.size else 0.0


def vllm_support(source: peft.PeftAdapter) -> str:
    """Whether vLLM loads an adapter as it is, and what to do if it does not."""
    whole = [path for path, e in source.adapter.items() if not is_factors(e)]
    if whole:
        return f"does not load it: modules_to_save ({', '.join(whole)})"
    patterns = [f for f in ("rank_pattern", "alpha_pattern") if source.config.get(f)]
    if patterns:
        return (
            f"would load it wrongly: it ignores {' and '.join(patterns)}; write it "
            "again with: potara merge --adapters DIR --weights 1 --out NEW"
        )
    rank = _largest_rank(source.adapter)
    if rank > _VLLM_RANKS[-1]:
        return (
            f"does not load it: rank {rank} is above {_VLLM_RANKS[-1]}; truncate it "
            "with: potara merge --adapters DIR --weights 1 --rank "
            f"{_VLLM_RANKS[-1]} --out NEW"
        )
    limit = next(r for r in _VLLM_RANKS if r >= rank)
    option = f", with --max-lora-rank {limit}" if limit > _VLLM_RANK else ""
    return f"loads it as it is{option}"


def _largest_rank(adapter: Adapter) -> int:
    return max(e["a"].shape[-1] for e in adapter.values() if is_factors(e))
