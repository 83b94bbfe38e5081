"""`potara inspect`: what a LoRA adapter that PEFT wrote holds, and who can load it."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Sequence
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
from potara_jax.adapters.lora import Adapter, is_factors

_VLLM_RANK = 16  # vLLM's default for --max-lora-rank


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show what a LoRA adapter that PEFT wrote holds, and who can load it."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The adapter's folder."""

    def __call__(self) -> None:
        """Print what the adapter holds."""
        inspect(self, Console())


def command(words: list[str]) -> tuple[Any, None]:
    """The type of the command."""
    return Inspect, None


def inspect(options: Inspect, console: Console) -> None:
    """Print what an adapter holds, a row for every kind of module."""
    source = peft.read(options.folder)
    note = lambda text: console.print(
        text, highlight=False, markup=False, soft_wrap=True
    )
    note(f"base model: {source.config.get('base_model_name_or_path')}")
    note(f"task: {source.config.get('task_type')}")
    note(f"dtype: {source.dtype}")
    console.print(_table(source))
    whole = {p: e for p, e in source.adapter.items() if not is_factors(e)}
    for path, entry in whole.items():
        shapes = ", ".join(f"{name} {x.shape}" for name, x in entry.items())
        note(f"trained whole: {path} ({shapes})")
    sizes = [x.size for entry in source.adapter.values() for x in entry.values()]
    note(f"parameters: {sum(sizes):,}")
    note(f"vLLM: {vllm_note(source)}")


def _table(source: peft.PeftAdapter) -> Table:
    kinds = _kinds(source.adapter)
    shared = _shared_start(kinds)
    table = Table(title=shared.rstrip("."), title_justify="left", box=box.SIMPLE)
    table.caption = "norm: Frobenius, of the delta; effective: rank, exp(entropy)"
    table.add_column("module", no_wrap=True)
    for name in ("count", "in", "out", "rank", "scale", "norm", "effective"):
        table.add_column(name, justify="right", min_width=len(name))
    for kind, paths in kinds.items():
        cells = (str(len(paths)), *_cells(source, paths))
        table.add_row(Text(kind.removeprefix(shared)), *cells)
    return table


def _shared_start(kinds) -> str:
    """The modules that all kinds are in: `model.layers.*.`."""
    columns = zip(*(kind.split(".")[:-1] for kind in kinds), strict=False)
    same = takewhile(lambda names: len(set(names)) == 1, columns)
    return "".join(f"{names[0]}." for names in same)


def _kinds(adapter: Adapter) -> dict[str, list[str]]:
    """Paths of adapted modules that are the same but for their numbers, and sizes."""
    kinds = defaultdict(list)
    for path in adapter:
        if is_factors(adapter[path]):
            kinds[re.sub(r"(?<=\.)\d+(?=\.)", "*", path)].append(path)
    return kinds


def _cells(source, paths) -> list[str]:
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


def _span(values: Sequence[Any]) -> str:
    shown = lambda x: str(x) if isinstance(x, int) else f"{x:.3g}"
    low, high = map(shown, (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def singular_values(entry) -> np.ndarray:
    """The singular values of a delta `[R]`, from its factors."""
    a, b = (np.asarray(entry[name], np.float64) for name in "ab")
    core = np.linalg.qr(a, mode="r") @ np.linalg.qr(b.T, mode="r").T
    return np.linalg.svd(core, compute_uv=False)


def effective_rank(sigma: np.ndarray) -> float:
    """`exp(-sum p log p)`, `p` the singular values' shares (Roy and Vetterli 2007)."""
    share = sigma[sigma > 0] / max(sigma.sum(), 1e-30)
    return float(np.exp(-(share * np.log(share)).sum())) if share.size else 0.0


def vllm_note(source: peft.PeftAdapter) -> str:
    """Whether vLLM loads an adapter as it is, and what to do where it does not."""
    whole = [path for path, e in source.adapter.items() if not is_factors(e)]
    if whole:
        return f"does not load it: modules_to_save ({', '.join(whole)})"
    patterns = [f for f in ("rank_pattern", "alpha_pattern") if source.config.get(f)]
    if patterns:
        return (
            f"would load it wrongly: it ignores {' and '.join(patterns)}; write it "
            "anew with: potara merge --adapters DIR --weights 1 --out NEW"
        )
    rank = _largest_rank(source.adapter)
    option = f", with --max-lora-rank {rank} or more" if rank > _VLLM_RANK else ""
    return f"loads it as it is{option}"


def _largest_rank(adapter: Adapter) -> int:
    return max(e["a"].shape[-1] for e in adapter.values() if is_factors(e))
