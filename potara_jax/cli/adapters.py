"""What `potara` does with adapters that PEFT wrote: merge them, and look at one.

Each command is a frozen dataclass of its options and a function that carries it out.
A user's mistake is a `ValueError` of one line.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from potara_jax import merging
from potara_jax.adapters import algebra, peft, peft_config
from potara_jax.adapters.lora import Adapter, Array, Entry, is_factors
from potara_jax.merging import spaces

_HALF = 0.5
_VLLM_RANK = 16  # vLLM's default for --max-lora-rank


@dataclasses.dataclass(frozen=True)
class Merge:
    """Merge LoRA adapters that PEFT wrote into one of the same kind.

    The result is an adapter folder that PEFT, transformers and vLLM load: one rank for
    all modules, scale 1. The default, `linear` in `delta` space, is exactly the
    weighted sum of the deltas, and its rank the sum of the ranks.
    """

    out: Path
    """The folder to write. It appears whole or not at all."""
    federated: Path | None = None
    """The adapter of the federation, as PEFT saved it."""
    local: Path | None = None
    """The client's own adapter."""
    weight: float | None = None
    """The weight of the federated adapter, 0 to 1; the local one has the rest. Not
    given: 0.5."""
    adapters: tuple[Path, ...] = ()
    """Adapters to merge, any number, in the place of --federated and --local."""
    weights: tuple[float, ...] = ()
    """Their weights, one each; not given: the same for all, 1 in sum."""

    method: str = "linear"
    """How to merge: a name of the list above."""
    space: str | None = None
    """Where to merge: see above. Not given: the first of the method's."""
    rank: int | None = None
    """The largest rank of the result: deltas are truncated to it (by SVD). Not given:
    the exact rank."""
    density: float | None = None
    """ties, dare: the share of the entries that is kept."""
    draws: int | None = None
    """dare: how many random draws are averaged."""
    ridge: float | None = None
    """wudi: how strongly the result is drawn to the sum."""
    scale: float | None = None
    """task_arithmetic, ties, dare, tsv, iso: what the result is multiplied with."""
    seed: int = 0
    """Of methods that draw at random."""

    missing: Literal["refuse", "zero"] = "refuse"
    """A module that only some of the adapters have: refuse, or no change in the
    others."""
    allow_different_base: bool = False
    """Merge although the adapters name different base models (such as copies)."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the result. Not given: the widest of the adapters'."""
    overwrite: bool = False
    """Replace an adapter that is in --out already."""


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show what a LoRA adapter that PEFT wrote holds, and who can load it."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The adapter's folder."""


OPTIONS = ("density", "draws", "ridge", "scale")


def methods_help() -> str:
    """What `Merge.method` and `Merge.space` can be, a line each."""
    methods = [
        f"  {name}: {entry.summary} ({', '.join(entry.spaces)})"
        for name, entry in _usable().items()
    ]
    spaces = [f"  {name}: {space.summary}" for name, space in merging.SPACES.items()]
    head = "methods, and the spaces they merge in (the first is the default):"
    return "\n".join([head, *methods, "", "spaces:", *spaces])


def _usable() -> dict[str, merging.Entry]:
    """The methods that need nothing but adapters."""
    return {k: e for k, e in merging.METHODS.items() if e.needs == "nothing"}


# --- Merging -------------------------------------------------------------------------


def merge(options: Merge, console: Console) -> None:
    """Read, merge, write, and say what was done.

    Raises `ValueError` for options or adapters that do not fit, before anything is
    written.
    """
    method = _method(options)
    folders, weights = _folders(options), _weights(options)
    if options.rank is not None and options.rank < 1:
        raise ValueError(f"--rank is {options.rank}: it must be 1 or more")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed is {options.seed}: it must be in 0 to 2**32 - 1")
    peft.check_free(options.out, overwrite=options.overwrite)
    sources = [peft.read(folder) for folder in folders]
    adapters = peft.together(
        sources,
        missing=options.missing,
        allow_different_base=options.allow_different_base,
    )
    _check_whole(adapters[0], weights)
    merged, sizes = _merged(adapters, weights, method, options)
    peft.write(
        options.out,
        merged,
        peft_config.merged_config([source.config for source in sources]),
        dtype=options.dtype or peft.widest([source.dtype for source in sources]),
        overwrite=options.overwrite,
    )
    _tell(options, method, weights, sizes, console)


def _method(options: Merge) -> merging.Merge:
    if options.method not in _usable():
        known = ", ".join(_usable())
        raise ValueError(f"--method is {options.method!r}; there are: {known}")
    make = merging.METHODS[options.method]
    given = {name: getattr(options, name) for name in OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in make.options:
            own = ", ".join(f"--{option}" for option in make.options) or "none"
            raise ValueError(
                f"--{name} is no option of '{options.method}'; its options: {own}"
            )
    return make.make(**given)


def _folders(options: Merge) -> tuple[Path, ...]:
    pair = (options.federated, options.local)
    if options.adapters:
        if any(pair) or options.weight is not None:
            raise ValueError(
                "--adapters takes the place of --federated, --local and --weight; give "
                "--adapters with --weights, or a federated and a local one"
            )
        return options.adapters
    if None in pair:
        raise ValueError("give --federated and --local, or several --adapters")
    if options.weights:
        raise ValueError("--weights is for --adapters; give --weight")
    return pair


def _weights(options: Merge) -> tuple[float, ...]:
    if not options.adapters:
        weight = _HALF if options.weight is None else options.weight
        if not 0 <= weight <= 1:
            raise ValueError(f"--weight is {weight}: it must be between 0 and 1")
        return weight, 1 - weight
    count = len(options.adapters)
    weights = options.weights or (1 / count,) * count
    if len(weights) != count or not all(map(math.isfinite, weights)):
        given = " ".join(map(str, weights))
        raise ValueError(f"--weights is {given}: it must be {count} numbers, one each")
    return weights


def _check_whole(adapter, weights) -> None:
    whole = [path for path, entry in adapter.items() if not is_factors(entry)]
    if whole and not math.isclose(sum(weights), 1, rel_tol=1e-3):
        raise ValueError(
            f"--weights add up to {sum(weights):g}: they must add up to 1, because "
            f"'{whole[0]}' is trained whole and is averaged"
        )


def _merged(adapters, weights, method, options) -> tuple[Adapter, np.ndarray]:
    """The merge, and the `_sizes` of every module, before and after truncation.

    Module by module: one program for all modules of a shape, and little memory.
    """
    space = options.space or method.spaces[0]
    if space in spaces.EQUAL_RANKS:
        spaces.check_equal_ranks(adapters, space)
    merge_one = jax.jit(partial(_merge_one, weights, method, options))
    key = jax.random.key(options.seed)
    merged, sizes = {}, []
    for number, path in enumerate(adapters[0]):
        entries = [adapter[path] for adapter in adapters]
        out = merge_one(entries, jax.random.fold_in(key, number))
        merged[path], size = jax.tree.map(np.asarray, out)
        sizes.append(size)
    return merged, np.stack(sizes)


def _merge_one(weights, method, options, entries, key) -> tuple[Entry, Array]:
    """One module merged and, where asked for, truncated."""
    named = [{"module": entry} for entry in entries]
    space = options.space
    (exact,) = merging.merge(
        named, weights, method=method, space=space, key=key
    ).values()
    entry = _truncated(exact, options.rank)
    return entry, jnp.stack([_sizes(exact), _sizes(entry)])


def _truncated(entry: Entry, rank: int | None) -> Entry:
    """A delta at its nearest of a rank, or as it is where its rank is no higher."""
    if rank is None or not is_factors(entry) or entry["a"].shape[-1] <= rank:
        return entry
    own = min(*entry["a"].shape, entry["b"].shape[-1])
    return algebra.truncate(entry, rank=min(rank, own))


def _sizes(entry: Entry) -> Array:
    """The rank and the squared norm of a delta; zeros for a module trained whole."""
    if not is_factors(entry):
        return jnp.zeros(2)
    return jnp.stack([jnp.float32(entry["a"].shape[-1]), algebra.norm(entry) ** 2])


def _tell(options, method, weights, sizes, console) -> None:
    note = _noting(console)
    space = options.space or method.spaces[0]
    given = ", ".join(f"{weight:g}" for weight in weights)
    note(f"merged with weights {given} by {method.name} in {space} space")
    full, rank = sizes[..., 0].max(0).astype(int)
    exact, kept = sizes[..., 1].sum(0, dtype=np.float64)
    if rank < full:
        share = 100 * kept / max(exact, 1e-30)
        note(f"rank {rank} of {full} keeps {share:.2f} % of the squared norm")
    else:
        note(f"rank {rank}, nothing is cut off")
    note(f"adapter: {options.out}")


def _noting(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(
        text, highlight=False, markup=False, soft_wrap=True
    )


def _largest_rank(adapter: Adapter) -> int:
    return max(e["a"].shape[-1] for e in adapter.values() if is_factors(e))


# --- Inspecting ----------------------------------------------------------------------


def inspect(options: Inspect, console: Console) -> None:
    """Print what an adapter holds, a row for every kind of module."""
    source = peft.read(options.folder)
    note = _noting(console)
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
