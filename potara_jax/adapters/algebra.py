"""Exact algebra of low-rank deltas, without ever forming `D x K`.

Dimension letters: `D` inputs, `K` outputs, `R` rank, `...` any leading axes (clients,
scanned layers). A *delta* is what factors `{"a": [..., D, R], "b": [..., R, K]}` stand
for: `a b`. Factors are defined only up to `(a G, G^-1 b)`, their *gauge*; every
function here depends on the delta alone.
All products are taken in float32 at full precision, also on a TPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter, Array, Entry, is_factors

_TOLERANCE = 1e-6


def _dot(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")


def _transpose(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _one_by_one(decompose: Callable[[Array], tuple[Array, ...]]):
    """A matrix decomposition over leading axes, one matrix at a time on a CPU.

    Batched LAPACK calls of jaxlib (0.10) hand their matrices to the very thread pool
    that they run on and wait: as many calls at once as there are threads never end.
    """
    one = jax.custom_batching.sequential_vmap(decompose)

    def batched(x):
        sequential = one
        for _ in range(x.ndim - 2):
            sequential = jax.vmap(sequential)
        return jax.lax.platform_dependent(x, cpu=sequential, default=decompose)

    return batched


_qr = _one_by_one(lambda x: tuple(jnp.linalg.qr(x)))
_svd = _one_by_one(lambda x: tuple(jnp.linalg.svd(x, full_matrices=False)))


def delta(entry: Entry) -> Array:
    """The dense delta `[..., D, K]`: for tests and small models only."""
    return _dot(plain(entry)["a"], entry["b"])


def plain(entry: Entry) -> Entry:
    """Factors without a core: `a m b` becomes `(a m) b`."""
    if "m" not in entry:
        return entry
    return {"a": _dot(entry["a"], entry["m"]), "b": entry["b"]}


def concatenate(first: Entry, second: Entry) -> Entry:
    """Factors of rank `R1 + R2` whose delta is exactly the sum of both deltas."""
    return {
        "a": jnp.concatenate([first["a"], second["a"]], axis=-1),
        "b": jnp.concatenate([first["b"], second["b"]], axis=-2),
    }


def truncate(entry: Entry, *, rank: int) -> Entry:
    """The nearest factors of a rank (Eckart-Young), as truncating the dense SVD gives.

    QR of both factors, SVD of the small core `R_a R_b^T`, the largest `rank` singular
    values, whose square roots go to both sides. Cost `O((D + K) R^2 + R^3)`.
    Raises `ValueError` where the factors have a smaller rank than the one asked for.
    """
    own = min(*entry["a"].shape[-2:], entry["b"].shape[-1])
    if not 1 <= rank <= own:
        raise ValueError(f"cannot truncate factors of rank {own} to rank {rank}")
    left, core_left = _qr(entry["a"])
    right, core_right = _qr(_transpose(entry["b"]))
    core = _dot(core_left, _transpose(core_right))
    u, sigma, v = _svd(core)
    root = jnp.sqrt(sigma[..., :rank])
    a = _dot(left, u[..., :rank]) * root[..., None, :]
    return {"a": a, "b": root[..., None] * _dot(v[..., :rank, :], _transpose(right))}


class Basis(NamedTuple):
    """Orthonormal columns `left` `[..., D, R']` and rows `right` `[..., R', K]`."""

    left: Array
    right: Array


def joint_basis(first: Entry, second: Entry) -> Basis:
    """The principal bases of two deltas together, `R' = R1 + R2` at most.

    `left` holds the left singular vectors of `[delta_1 delta_2]`, `right` the right
    ones of the two stacked, so both depend on the deltas alone, up to signs: no choice
    of factors changes them. Directions that neither delta uses are zero. Both deltas
    are `left m right` without loss, `m` from `coordinates`. (Core Space, Panariello et
    al. 2025, arXiv 2509.17786, is the same space with bases of the factors.)
    """
    left, r_left = _qr(jnp.concatenate([first["a"], second["a"]], -1))
    right, r_right = _qr(
        jnp.concatenate([_transpose(first["b"]), _transpose(second["b"])], -1)
    )
    split = first["a"].shape[-1]
    core_1 = _dot(r_left[..., :split], _transpose(r_right[..., :split]))
    core_2 = _dot(r_left[..., split:], _transpose(r_right[..., split:]))
    u = _principal(jnp.concatenate([core_1, core_2], -1))
    v = _principal(jnp.concatenate([_transpose(core_1), _transpose(core_2)], -1))
    return Basis(_dot(left, u), _transpose(_dot(right, v)))


def _principal(matrix: Array) -> Array:
    """Left singular vectors; zero where the singular value is."""
    u, sigma, _ = _svd(matrix)
    used = sigma > _TOLERANCE * sigma[..., :1]
    return u * used[..., None, :]


def coordinates(basis: Basis, entry: Entry) -> Array:
    """The core `m = left^T a b right^T` `[..., R', R']` of factors in a basis."""
    inner = _dot(_transpose(basis.left), entry["a"])
    return _dot(inner, _dot(entry["b"], _transpose(basis.right)))


def map_factors(fn: Callable[..., Entry], *adapters: Adapter) -> Adapter:
    """Apply a function of factors to every adapted module, modules of a shape at once.

    `fn` takes one entry of each adapter and returns an entry; it must accept leading
    axes. Modules that are trained whole are not passed on, and not in the result.
    """
    groups: Mapping[tuple, list[str]] = defaultdict(list)
    for path in sorted(p for p, entry in adapters[0].items() if is_factors(entry)):
        shapes = [jax.tree.map(jnp.shape, adapter[path]) for adapter in adapters]
        groups[str(shapes)].append(path)
    results: Adapter = {}
    for paths in groups.values():
        stacked = [_stack([a[path] for path in paths]) for a in adapters]
        out = fn(*stacked)
        for i, path in enumerate(paths):
            results[path] = jax.tree.map(lambda x, i=i: x[i], out)
    return results


def _stack(entries: list[Entry]) -> Entry:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *entries)
