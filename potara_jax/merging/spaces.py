"""Spaces in which adapters are compared and merged.

A space gives every adapter coordinates, and builds an adapter from coordinates:

`factor`   the factors themselves: what Potara's appendix measures and merges. The
           composed delta is quadratic in them, and they depend on their gauge.
`aligned`  the factors in a common gauge: balanced, and turned to the first adapter's.
`delta`    one number for every column of the concatenated factors: sums of deltas are
           exact, and nothing is computed. Only sums make sense here.
`core`     the matrix between the deltas' joint bases: `delta = left m right`. The
           delta is linear in `m`, without loss, and `m` does not see the gauge.
`knots`    the rows that the deltas have in one joint basis of their outputs:
           `delta = c right`, linear and without loss; the inputs stay themselves.

Modules that are trained whole are their own coordinates in every space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Adapter, Array, Entry, is_factors


class Coordinates(NamedTuple):
    """Adapters in one space.

    that no adapter uses; None where there are none such.

    Attributes:
      thetas: coordinates of every adapter, all of one structure, by module path.
      assemble: coordinates to the adapter that they stand for.
      used: booleans like the coordinates, False where a joint basis has a direction
    """

    thetas: tuple[Adapter, ...]
    assemble: Callable[[Adapter], Adapter]
    used: Adapter | None = None


class Space(NamedTuple):
    """A space: a line on its use, and its source.

    Attributes:
      coordinates: from adapters of one client to their `Coordinates`.
      summary: what it is for.
      reference: its paper.
      bilinear: whether the delta is a product of the coordinates `a` and `b`, not
        linear in them.
    """

    coordinates: Callable[[Sequence[Adapter]], Coordinates]
    summary: str
    reference: str
    bilinear: bool = False


def factor(adapters: Sequence[Adapter]) -> Coordinates:
    """The factors as they are.

    Raises:
      ValueError: ranks differ.
    """
    adapters = [plain(adapter) for adapter in adapters]
    check_equal_ranks(adapters, "factor")
    return Coordinates(tuple(adapters), lambda theta: theta)


def aligned(adapters: Sequence[Adapter]) -> Coordinates:
    """Balanced factors, turned to the first's.

    Raises:
      ValueError: ranks differ.
    """
    check_equal_ranks(adapters, "aligned")
    first = _replace(adapters[0], algebra.map_factors(algebra.balance, adapters[0]))
    others = [_replace(x, algebra.map_factors(_turned, first, x)) for x in adapters[1:]]
    return Coordinates((first, *others), lambda theta: theta)


def _turned(reference: Entry, entry: Entry) -> Entry:
    return algebra.align(reference, algebra.balance(entry))


def delta(adapters: Sequence[Adapter]) -> Coordinates:
    """Ones for an adapter's columns of the concatenated factors, zeros for others'."""
    paths = [path for path, entry in adapters[0].items() if is_factors(entry)]
    joined = {p: algebra.concatenate(*(x[p] for x in adapters)) for p in paths}
    ranks = {p: [plain_rank(x[p]) for x in adapters] for p in paths}
    thetas = [
        _replace(adapter, {p: {"v": _indicator(ranks[p], i)} for p in paths})
        for i, adapter in enumerate(adapters)
    ]

    def weigh(path: str, theta: Entry) -> Entry:
        return {"a": joined[path]["a"] * theta["v"], "b": joined[path]["b"]}

    return Coordinates(tuple(thetas), _assembler(paths, weigh))


def _indicator(ranks: list[int], adapter: int) -> Array:
    return jnp.concatenate(
        [jnp.full(rank, float(i == adapter)) for i, rank in enumerate(ranks)]
    )


def core(adapters: Sequence[Adapter]) -> Coordinates:
    """The cores `m` in the joint principal bases of the deltas."""
    basis = algebra.map_factors(_joint, *adapters)

    def around(path: str, theta: Entry) -> Entry:
        return {"a": basis[path]["left"], "m": theta["m"], "b": basis[path]["right"]}

    def project(path: str, entry: Entry) -> Entry:
        return {"m": algebra.coordinates(algebra.Basis(**basis[path]), entry)}

    def used(path: str) -> Entry:
        rows, columns = _used_left(basis[path]["left"]), _used(basis[path]["right"])
        return {"m": rows[..., :, None] & columns[..., None, :]}

    return _projected(adapters, basis, project, around, used)


def _joint(*entries: Entry) -> Entry:
    return algebra.joint_basis(*entries)._asdict()


def knots(adapters: Sequence[Adapter]) -> Coordinates:
    """The deltas' rows in the joint principal basis of their outputs."""
    basis = algebra.map_factors(
        lambda *entries: {"right": algebra.joint_basis(*entries).right}, *adapters
    )

    def project(path: str, entry: Entry) -> Entry:
        return {"c": algebra.rows(basis[path]["right"], entry)}

    def beside(path: str, theta: Entry) -> Entry:
        return {"a": theta["c"], "b": basis[path]["right"]}

    def used(path: str) -> Entry:
        return {"c": _used(basis[path]["right"])[..., None, :]}

    return _projected(adapters, basis, project, beside, used)


def _projected(
    adapters: Sequence[Adapter],
    basis: Adapter,
    project: Callable[[str, Entry], Entry],
    build: Callable[[str, Entry], Entry],
    used: Callable[[str], Entry],
) -> Coordinates:
    """Coordinates by a projection of every adapted module, and back by `build`."""
    thetas = [
        _replace(adapter, {path: project(path, adapter[path]) for path in basis})
        for adapter in adapters
    ]
    masks = _replace(jax.tree.map(_all_used, thetas[0]), {p: used(p) for p in basis})
    like = lambda x, mask: jnp.broadcast_to(mask, x.shape)
    masks = jax.tree.map(like, thetas[0], masks)
    return Coordinates(tuple(thetas), _assembler(basis, build), masks)


def _used(right: Array) -> Array:
    """Which rows of a joint basis some adapter uses: the others are zero."""
    return (right != 0).any(-1)


def _used_left(left: Array) -> Array:
    """The same of columns."""
    return (left != 0).any(-2)


def _all_used(x: Array) -> Array:
    return jnp.ones(jnp.shape(x), bool)


def _assembler(
    paths: Iterable[str], build: Callable[[str, Entry], Entry]
) -> Callable[[Adapter], Adapter]:
    return lambda theta: _replace(theta, {p: build(p, theta[p]) for p in paths})


def _replace(adapter: Adapter, entries: Adapter) -> Adapter:
    """The adapter with some entries replaced, in the same order."""
    return {path: entries.get(path, entry) for path, entry in adapter.items()}


def check_equal_ranks(adapters: Sequence[Adapter], space: str) -> None:
    """Raise `ValueError` if adapters' ranks differ; it names the module."""
    for path, entry in adapters[0].items():
        ranks = {plain_rank(x[path]) for x in adapters} if is_factors(entry) else ()
        if len(ranks) > 1:
            listed = ", ".join(map(str, sorted(ranks)))
            raise ValueError(
                f"'{path}' has ranks {listed}, which '{space}' space cannot merge; "
                "use delta, core or knots"
            )


def stands_for_delta(entry: Entry) -> bool:
    """Whether a module's coordinates are of a delta (else: its own parameters)."""
    return set(entry) in ({"v"}, {"m"}, {"c"}, {"a", "b"})


def plain_rank(entry: Entry) -> int:
    """The rank of a module's factors, a core multiplied in."""
    return entry["b"].shape[-2]


def plain(adapter: Adapter) -> Adapter:
    """The adapter with every core multiplied into its left factor."""
    return {
        path: algebra.plain(entry) if is_factors(entry) else entry
        for path, entry in adapter.items()
    }


SPACES: dict[str, Space] = {
    "delta": Space(delta, "exact sums of deltas, by concatenation", "this project"),
    "core": Space(
        core, "between joint bases; exact, gauge-invariant", "arXiv 2509.17786"
    ),
    "knots": Space(knots, "rows in a joint output basis; exact", "arXiv 2410.19735"),
    "factor": Space(
        factor,
        "the factors a and b, each by itself",
        "arXiv 2602.18658",
        bilinear=True,
    ),
    "aligned": Space(
        aligned,
        "balanced factors, turned to the first's",
        "Procrustes rotation",
        bilinear=True,
    ),
}
