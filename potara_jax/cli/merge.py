"""`potara merge`: LoRA adapters that PEFT wrote, merged into one of the same kind."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.text import Text

from potara_jax import merging
from potara_jax.adapters import algebra, peft, peft_config
from potara_jax.adapters.lora import Adapter, Array, Entry, is_factors
from potara_jax.cli.parsing import BARE, annotated
from potara_jax.merging import combining, registry, spaces

_HALF = 0.5


@dataclasses.dataclass(frozen=True)
class Merge:
    """Merge LoRA adapters that PEFT wrote into one of the same kind.

    The result is an adapter folder that PEFT, transformers and vLLM load, with one rank
    for all modules and scale 1. By default, `linear` in `delta` space, its delta is
    exactly the weighted sum of the deltas, and its rank the sum of the ranks.
    """

    out: Path
    """The folder to write. It appears whole or not at all."""
    federated: Path | None = None
    """The federated adapter, as PEFT saved it."""
    local: Path | None = None
    """The client's local adapter."""
    weight: float | None = None
    """The weight of the federated adapter, from 0 to 1; the local one gets the rest.
    Default: 0.5."""
    adapters: tuple[Path, ...] = ()
    """Any number of adapters to merge, instead of --federated and --local."""
    weights: tuple[float, ...] = ()
    """The weight of each of --adapters. Default: equal weights that add up to 1."""

    method: str = "linear"
    """The merge, from the list above."""
    space: str | None = None
    """The space to merge in, from the list above. Default: the method's first."""
    rank: int | None = None
    """The largest rank of the result; deltas are truncated to it by SVD. Default: the
    exact rank."""
    seed: int = 0
    """Of merges that draw at random."""

    missing: Literal["refuse", "zero"] = "refuse"
    """What to do with a module that only some of the adapters have: refuse it, or count
    it as unchanged in the others."""
    allow_different_base: bool = False
    """Merge even if the adapters name different base models, such as copies of one."""
    allow_unknown_settings: bool = False
    """Read adapters although they have settings that PEFT's plain LoRA has not."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the result. Default: the widest of the adapters'."""
    overwrite: bool = False
    """Replace the adapter that --out holds."""


def command(words: list[str]) -> tuple[Any, str]:
    """The type of the command, with every merge's options, and the list of merges."""
    parts = {"merge": Merge, "options": _options()}
    fields = [(name, annotated[part, BARE]) for name, part in parts.items()]
    methods = {"__call__": lambda self: merge(self.merge, vars(self.options))}
    kind = dataclasses.make_dataclass("Command", fields, namespace=methods)
    return kind, f"{getdoc(Merge)}\n\n{methods_help()}"


def _options() -> Any:
    """A dataclass of the options of all merges, with the default None."""
    merges: dict[str, list[str]] = defaultdict(list)
    for name, entry in _usable().items():
        for option in entry.options:
            merges[option].append(name)
    fields = [_option(name, users) for name, users in merges.items()]
    return dataclasses.make_dataclass("Options", fields, frozen=True)


def _option(name: str, merges: Sequence[str]) -> tuple[str, Any, Any]:
    """The dataclass field of an option that some merges have."""
    described = tyro.conf.arg(help=f"Of {', '.join(merges)}.")
    kind = Annotated[float | None, described]
    return name, kind, dataclasses.field(default=None)


def methods_help() -> str:
    """The values of `Merge.method` and `Merge.space`, a line each."""
    merges = [
        f"  {name}: {entry.summary} ({', '.join(entry.spaces)})"
        for name, entry in _usable().items()
    ]
    kinds = [f"  {name}: {space.summary}" for name, space in merging.SPACES.items()]
    head = "merges, and the spaces they merge in (the first is the default):"
    return "\n".join([head, *merges, "", "spaces:", *kinds])


def _usable() -> dict[str, registry.MergeEntry]:
    """The merges that need nothing but adapters."""
    return {k: e for k, e in registry.merges().items() if e.needs == "nothing"}


def merge(
    options: Merge, given: Mapping[str, float | None], console: Console | None = None
) -> None:
    """Read the adapters, merge them, write the result, and report it.

    Args:
      options: of the command.
      given: options of its method; None means the default.
      console: for the report; default: standard output.

    Raises:
      ValueError: options or adapters do not fit; nothing is written then.
    """
    method = _method(options.method, given)
    folders, weights = _folders(options), _weights(options)
    if options.rank is not None and options.rank < 1:
        raise ValueError(f"--rank is {options.rank}: it must be 1 or more")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed is {options.seed}: it must be in 0 to 2**32 - 1")
    peft.check_free(options.out, overwrite=options.overwrite)
    sources = [
        peft.read(folder, allow_unknown_settings=options.allow_unknown_settings)
        for folder in folders
    ]
    adapters = peft.align(
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
    _report(options, method, weights, sizes, console or Console())


def _method(name: str, given: Mapping[str, float | None]) -> merging.Merge:
    if name not in _usable():
        known = ", ".join(_usable())
        raise ValueError(f"--method is {name!r}: it must be one of {known}")
    entry = _usable()[name]
    options = {option: x for option, x in given.items() if x is not None}
    for option in options:
        if option not in entry.options:
            known = ", ".join(f"--{known}" for known in entry.options) or "none"
            raise ValueError(
                f"--{option} is not an option of '{name}', whose options are: {known}"
            )
    typed = {k: type(entry.options[k])(x) for k, x in options.items()}
    return entry.make(**typed)


def _folders(options: Merge) -> tuple[Path, ...]:
    federated, local = options.federated, options.local
    if options.adapters:
        if federated or local or options.weight is not None:
            raise ValueError(
                "--adapters replaces --federated, --local and --weight; give "
                "--adapters with --weights, or --federated and --local"
            )
        return options.adapters
    if federated is None or local is None:
        raise ValueError("give --federated and --local, or several --adapters")
    if options.weights:
        raise ValueError("--weights is for --adapters; give --weight")
    return federated, local


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
        raise ValueError(
            f"--weights is {given}: it must be {count} numbers, one for each adapter"
        )
    return weights


def _check_whole(adapter: Adapter, weights: Sequence[float]) -> None:
    whole = [path for path, entry in adapter.items() if not is_factors(entry)]
    if whole and not math.isclose(sum(weights), 1, rel_tol=1e-3):
        raise ValueError(
            f"--weights add up to {sum(weights):g}: they must add up to 1, because "
            f"'{whole[0]}' is trained whole and is averaged"
        )


def _merged(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    method: merging.Merge,
    options: Merge,
) -> tuple[Adapter, np.ndarray]:
    """The merge, and the `_sizes` of every module, before and after truncation.

    Merges one module at a time, which takes little memory, and compiles one program for
    all modules of a shape.
    """
    space = combining.checked_space(method, options.space)
    if spaces.SPACES[space].bilinear:
        spaces.check_equal_ranks(adapters, space)
    merge_one = jax.jit(partial(_merge_one, weights, method, options))
    key = jax.random.key(options.seed)
    merged: Adapter = {}
    sizes: list[np.ndarray] = []
    for number, path in enumerate(adapters[0]):
        entries = [adapter[path] for adapter in adapters]
        result = merge_one(entries, jax.random.fold_in(key, number))
        merged[path], size = jax.tree.map(np.asarray, result)
        sizes.append(size)
    return merged, np.stack(sizes)


def _merge_one(
    weights: Sequence[float],
    method: merging.Merge,
    options: Merge,
    entries: Sequence[Entry],
    key: Array,
) -> tuple[Entry, Array]:
    """One module merged and, if a rank is given, truncated."""
    adapters = [{"module": entry} for entry in entries]
    merged = merging.merge(
        adapters, weights, method=method, space=options.space, key=key
    )
    exact = merged["module"]
    entry = _truncated(exact, options.rank)
    return entry, jnp.stack([_sizes(exact), _sizes(entry)])


def _truncated(entry: Entry, rank: int | None) -> Entry:
    """The nearest delta of a rank, or the delta itself if its rank is no larger."""
    if rank is None or not is_factors(entry) or entry["a"].shape[-1] <= rank:
        return entry
    largest = min(*entry["a"].shape, entry["b"].shape[-1])
    return algebra.truncate(entry, rank=min(rank, largest))


def _sizes(entry: Entry) -> Array:
    """The rank and the squared norm of a delta; zeros for a module trained whole."""
    if not is_factors(entry):
        return jnp.zeros(2)
    return jnp.stack([jnp.float32(entry["a"].shape[-1]), algebra.norm(entry) ** 2])


def _report(
    options: Merge,
    method: merging.Merge,
    weights: Sequence[float],
    sizes: np.ndarray,
    console: Console,
) -> None:
    space = options.space or method.spaces[0]
    given = ", ".join(f"{weight:g}" for weight in weights)
    lines = (
        f"merged with weights {given} by {method.name} in {space} space",
        _truncation(sizes),
        f"adapter: {options.out}",
    )
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _truncation(sizes: np.ndarray) -> str:
    """What the truncation keeps, from the `_sizes` of all modules, before and after."""
    full, rank = sizes[..., 0].max(0).astype(int)
    if rank == full:
        return f"rank {rank}, nothing is cut off"
    exact, kept = sizes[..., 1].sum(0, dtype=np.float64)
    share = 100 * kept / max(exact, 1e-30)
    return f"rank {rank} of {full} keeps {share:.2f} % of the squared norm"
