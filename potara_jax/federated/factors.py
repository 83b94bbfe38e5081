"""What algorithms do with adapters: split them, mix two, cut ranks, average deltas.

Dimension letters: `C` clients, `D` inputs, `R` rank, `K` outputs; `...` scanned layers.
A module that is trained whole (a head) has no factors; each function says what becomes
of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Adapter, Array, Entry, is_factors
from potara_jax.federated.aggregation import weighted_mean
from potara_jax.federated.ledger import Either, Part

Deltas = dict[str, Array]


def only_a(adapter: Adapter) -> Adapter:
    """The factors `a`."""
    return {p: {"a": e["a"]} for p, e in adapter.items() if is_factors(e)}


def all_but_a(adapter: Adapter) -> Adapter:
    """The factors `b`, and the modules that are trained whole."""
    return {p: {k: v for k, v in e.items() if k != "a"} for p, e in adapter.items()}


def join(*parts: Adapter) -> Adapter:
    """Parts of an adapter together."""
    paths = sorted({path for part in parts for path in part})
    entry = lambda path: {k: v for part in parts for k, v in part.get(path, {}).items()}
    return {path: entry(path) for path in paths}


def factors(adapter: Adapter) -> Adapter:
    """The modules with factors."""
    return {path: entry for path, entry in adapter.items() if is_factors(entry)}


def whole(adapter: Adapter) -> Adapter:
    """The modules that are trained whole."""
    return {path: entry for path, entry in adapter.items() if not is_factors(entry)}


def last_modules(adapter: Adapter, blocks: int = 1) -> set[str]:
    """The modules that are trained whole; if there are none, those of the last blocks.

    A block is the part of a path before its first slash, in the order of its numbers.

    Args:
      adapter: of the model.
      blocks: how many of the last ones.
    """
    if whole(adapter):
        return set(whole(adapter))
    block = lambda path: path.split("/")[0]
    names = sorted({block(path) for path in adapter}, key=_by_number)
    return {path for path in adapter if block(path) in names[-blocks:]}


def _by_number(name: str) -> list:
    return [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)]


def divide(adapter: Adapter, paths: set[str]) -> tuple[Adapter, Adapter]:
    """The modules at the paths, and the others."""
    inside = {p: e for p, e in adapter.items() if p in paths}
    return inside, {p: e for p, e in adapter.items() if p not in paths}


def mix(first: Adapter, second: Adapter, share: Array | float) -> Adapter:
    """`share` of one adapter's output and `1 - share` of another's, exactly.

    The ranks add up. Modules that are trained whole are averaged.

    Args:
      first: the adapter with the share.
      second: the other one, of the same modules.
      share: from 0 to 1.
    """

    def concatenated(one: Entry, other: Entry) -> Entry:
        one = one | {"b": share * one["b"]}
        return algebra.concatenate(one, other | {"b": (1 - share) * other["b"]})

    return _both(concatenated, share, first, second)


def add(first: Adapter, second: Adapter) -> Adapter:
    """Both adapters' outputs summed, exactly; whole modules are the first's."""
    return _both(algebra.concatenate, 1.0, first, second)


def _both(
    join_factors: Callable[..., Any],
    share: Array | float,
    first: Adapter,
    second: Adapter,
) -> Adapter:
    average = lambda x, y: share * x + (1 - share) * y
    return {
        path: join_factors(entry, second[path])
        if is_factors(entry)
        else jax.tree.map(average, entry, second.get(path, entry))
        for path, entry in first.items()
    }


def interpolate(first: Any, second: Any, share: Array | float) -> Any:
    """`share x + (1 - share) y` of all numbers: factors, not deltas."""
    return jax.tree.map(lambda x, y: share * x + (1 - share) * y, first, second)


def squared_distance(first: Any, second: Any) -> Array | int:
    """`|x - y|^2` over all numbers; 0 for none."""
    squares = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), first, second)
    return sum(jax.tree.leaves(squares))


# --- Ranks ---------------------------------------------------------------------------


def rank_of(adapter: Adapter) -> int:
    """The rank of an adapter's factors, the same in all modules."""
    return next(iter(factors(adapter).values()))["a"].shape[-1]


def cut(adapter: Adapter, rank: Array | int) -> Adapter:
    """The adapter with zeros beyond a rank; whole modules as they are.

    Zero columns of `a` with zero rows of `b` have zero gradients: they stay zero in
    training, so a client keeps its rank.

    Args:
      adapter: of a larger rank.
      rank: that remains.
    """

    def entry(e: Entry) -> Entry:
        if not is_factors(e):
            return e
        inside = jnp.arange(e["a"].shape[-1]) < rank
        a = jnp.where(inside, e["a"], 0)
        return {"a": a, "b": jnp.where(inside[:, None], e["b"], 0)}

    return {path: entry(e) for path, e in adapter.items()}


def rank_for(adapter: Adapter, ranks: tuple[int, ...], client: Array) -> Array:
    """A client's rank, int32, of ranks that are dealt to the clients in turn.

    Args:
      adapter: of the largest rank.
      ranks: to deal; empty: the adapter's rank.
      client: the client's number.

    Raises:
      ValueError: a rank is not between 1 and the adapter's.
    """
    largest = rank_of(adapter)
    bad = [rank for rank in ranks if not 1 <= rank <= largest]
    if bad:
        raise ValueError(f"rank {bad[0]} of a client: it must be in 1 to {largest}")
    given = jnp.array(ranks or (largest,), jnp.int32)
    return given[client % len(given)]


def emptied(adapter: Adapter) -> Adapter:
    """The factors with `b` = 0."""
    return {p: e | {"b": 0 * e["b"]} for p, e in factors(adapter).items()}


def drawn(adapter: Adapter, key: Array, *, rank: int | None = None) -> Adapter:
    """Fresh factors of an adapter's modules: `a` uniform in +-1/sqrt(D), `b` zero.

    Args:
      adapter: whose modules.
      key: consumed.
      rank: of the fresh factors; default: the adapter's.
    """
    known = factors(adapter)
    keys = jax.random.split(key, len(known))
    width = rank or rank_of(adapter)

    def fresh(e: Entry, key: Array) -> Entry:
        *stack, inputs, _ = e["a"].shape
        bound = inputs**-0.5
        shape = (*stack, inputs, width)
        a = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        return {"a": a, "b": jnp.zeros((*stack, width, e["b"].shape[-1]))}

    pairs = zip(sorted(known), keys, strict=True)
    return {path: fresh(known[path], key) for path, key in pairs}


# --- Deltas --------------------------------------------------------------------------


def stacked(uploads: Adapter, weights: Array) -> Adapter:
    """Factors of rank `C R` whose delta is `sum_c p_c a_c b_c`, without forming it."""

    def entry(e: Entry) -> Entry:
        a = jnp.moveaxis(jnp.tensordot(jnp.diag(weights), e["a"], 1), 0, -2)
        b = jnp.moveaxis(e["b"], 0, -3)
        flat = lambda x, axis: x.reshape(*_merged(x.shape, axis))
        return {"a": flat(a, -2), "b": flat(b, -3)}

    return {path: entry(e) for path, e in factors(uploads).items()}


def cheapest(stack: Adapter, kept: Array) -> dict[str, Either]:
    """The deltas of stacked factors as a payload: factors or dense, as is smaller.

    Args:
      stack: factors, one module each.
      kept: the rank that travels, the same for all modules; the rest is zero. At 0
        nothing travels.
    """

    def either(entry: Entry) -> Either:
        rank = jnp.int32(entry["a"].shape[-1])
        dense = algebra.delta(entry)
        some = jnp.minimum(kept, 1)
        return Either(Part(entry, kept, rank), Part(dense, some, jnp.int32(1)))

    return {path: either(entry) for path, entry in stack.items()}


def _merged(shape: tuple[int, ...], axis: int) -> list[int]:
    """A shape with an axis and the next made one."""
    at = len(shape) + axis
    return [*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]]


def deltas(adapter: Adapter) -> Deltas:
    """The dense deltas `[..., D, K]` of the modules with factors."""
    return {path: algebra.delta(entry) for path, entry in factors(adapter).items()}


def add_deltas(first: Deltas, second: Deltas) -> Deltas:
    """Their sum."""
    return jax.tree.map(jnp.add, first, second)


def zero_deltas(adapter: Adapter) -> Deltas:
    """Dense zeros of every module with factors."""
    shape = lambda e: (*e["a"].shape[:-1], e["b"].shape[-1])
    return {path: jnp.zeros(shape(e)) for path, e in factors(adapter).items()}


def mean_whole(uploads: Adapter, weights: Array) -> Adapter:
    """The mean of the modules that are trained whole."""
    return weighted_mean(whole(uploads), weights)
