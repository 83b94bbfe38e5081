"""`potara merge`: LoRA adapters that PEFT wrote, merged into one of the same kind."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from potara_jax import merging
from potara_jax.adapters import algebra, peft, peft_config
from potara_jax.adapters.lora import Adapter, Array, Entry, is_factors
from potara_jax.merging import registry, spaces

_HALF = 0.5


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


def command(words: list[str]) -> tuple[Any, str]:
    """The type of the command, with every merge's options, and the list of merges."""
    bare = tyro.conf.arg(name="")
    parts = {"merge": Merge, "options": _options()}
    fields = [(name, Annotated[part, bare]) for name, part in parts.items()]
    carry_out = {"__call__": lambda self: merge(self.merge, vars(self.options))}
    kind = dataclasses.make_dataclass("Command", fields, namespace=carry_out)
    return kind, f"{getdoc(Merge)}\n\n{methods_help()}"


def _options() -> Any:
    """A dataclass of the options that merges have, none of them given."""
    merges: dict[str, list[str]] = defaultdict(list)
    for name, entry in _usable().items():
        for option in entry.options:
            merges[option].append(name)
    explained = lambda names: tyro.conf.arg(help=f"Of {', '.join(names)}.")
    kinds = {
        option: Annotated[float | None, explained(names)]
        for option, names in merges.items()
    }
    fields = [(n, kind, dataclasses.field(default=None)) for n, kind in kinds.items()]
    return dataclasses.make_dataclass("Options", fields, frozen=True)


def methods_help() -> str:
    """What `Merge.method` and `Merge.space` can be, a line each."""
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
    """Read, merge, write, and say what was done.

    given: the merge's own options, None where the default is meant.

    Raises `ValueError` for options or adapters that do not fit, before anything is
    written.
    """
    method = _method(options.method, given)
    folders, weights = _folders(options), _weights(options)
    if options.rank is not None and options.rank < 1:
        raise ValueError(f"--rank is {options.rank}: it must be 1 or more")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed is {options.seed}: it must be in 0 to 2**32 - 1")
    peft.check_free(options.out, overwrite=options.overwrite)
    sources = [peft.read(folder) for folder in folders]
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
        raise ValueError(f"--method is {name!r}; there are: {known}")
    entry = _usable()[name]
    options = {option: x for option, x in given.items() if x is not None}
    for option in options:
        if option not in entry.options:
            known = ", ".join(f"--{each}" for each in entry.options) or "none"
            own = f"its options: {known}"
            raise ValueError(f"--{option} is no option of '{name}'; {own}")
    whole = {k: type(entry.options[k])(x) for k, x in options.items()}
    return entry.make(**whole)


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


def _report(options, method, weights, sizes, console: Console) -> None:
    note = lambda text: console.print(
        text, highlight=False, markup=False, soft_wrap=True
    )
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
