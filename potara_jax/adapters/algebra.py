"""Exact algebra of low-rank deltas, without ever forming `D x K`.

Dimension letters: `D` inputs, `K` outputs, `R` rank, `...` any leading axes (clients,
scanned layers). A *delta* is what factors `{"a": [..., D, R], "b": [..., R, K]}` stand
for: `a b`. Factors are defined only up to `(a G, G^-1 b)`, their *gauge*; every
function here depends on the delta alone.
All products are taken in float32 at full precision, also on a TPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters.lora import Adapter, Array, Entry, is_factors

_TOLERANCE = 1e-6


def product(left: Array, right: Array) -> Array:
    """A matrix product in full float32 precision, also on a TPU."""
    left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.matmul(left, right, precision="highest")


def _transpose(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _one_by_one(
    decompose: Callable[..., tuple[Array, ...]],
) -> Callable[..., tuple[Array, ...]]:
    """A compiled matrix decomposition over leading axes, one matrix at a time on a CPU.

    Batched LAPACK calls of jaxlib (0.10) wait for tasks on the thread pool that they
    run on: as many calls at once as the pool has threads never end. LAPACK's SVD does
    not end either for a matrix with an infinity, so a matrix that is not finite gives
    NaN and is not decomposed.
    """
    decompose = _finite_or_nan(decompose)
    one = jax.custom_batching.sequential_vmap(decompose)

    def batched(*matrices: Array) -> tuple[Array, ...]:
        sequential = one
        for _ in range(matrices[0].ndim - 2):
            sequential = jax.vmap(sequential)
        return jax.lax.platform_dependent(*matrices, cpu=sequential, default=decompose)

    return jax.jit(batched)


def _finite_or_nan(
    decompose: Callable[..., tuple[Array, ...]],
) -> Callable[..., tuple[Array, ...]]:
    """A decomposition that is NaN for matrices with an entry that is not finite."""

    def guarded(*matrices: Array) -> tuple[Array, ...]:
        finite = jnp.stack([jnp.isfinite(x).all((-2, -1)) for x in matrices]).all(0)
        like = lambda x: finite.reshape(finite.shape + (1,) * (x.ndim - finite.ndim))
        results = decompose(*(jnp.where(like(x), x, 0) for x in matrices))
        return tuple(jnp.where(like(x), x, jnp.nan) for x in results)

    return guarded


qr = _one_by_one(lambda x: tuple(jnp.linalg.qr(x)))
_solve = _one_by_one(lambda matrix, target: (jnp.linalg.solve(matrix, target),))
svd = _one_by_one(lambda x: tuple(jnp.linalg.svd(x, full_matrices=False)))


def delta(entry: Entry) -> Array:
    """The dense delta `[..., D, K]`: for tests and small models only.

    Examples:
      >>> entry = {"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[3.0, 4.0]])}
      >>> delta(entry).tolist()
      [[3.0, 4.0], [6.0, 8.0]]
    """
    return product(plain(entry)["a"], entry["b"])


def plain(entry: Entry) -> Entry:
    """Factors without a core, `a m b` as `(a m) b`, in float32."""
    a, b = (entry[name].astype(jnp.float32) for name in "ab")
    return {"a": product(a, entry["m"]) if "m" in entry else a, "b": b}


def concatenate(*entries: Entry) -> Entry:
    """Factors of rank `R1 + R2 + ...` whose delta is exactly the sum of the deltas.

    Examples:
      >>> entry = {"a": jnp.ones((2, 1)), "b": jnp.ones((1, 2))}
      >>> both = concatenate(entry, entry)
      >>> both["a"].shape, delta(both).tolist()
      ((2, 2), [[2.0, 2.0], [2.0, 2.0]])
    """
    entries = tuple(map(plain, entries))
    return {
        "a": jnp.concatenate([entry["a"] for entry in entries], axis=-1),
        "b": jnp.concatenate([entry["b"] for entry in entries], axis=-2),
    }


def truncate(entry: Entry, *, rank: int) -> Entry:
    """The nearest factors of a rank (Eckart-Young): a truncated SVD of the delta.

    QR of both factors, SVD of the small core `R_a R_b^T`, the largest `rank` singular
    values, whose square roots go to both sides. Cost `O((D + K) R^2 + R^3)`.

    Args:
      entry: the factors of one module.
      rank: of the result.

    Raises:
      ValueError: the factors have a smaller rank.
    """
    entry = plain(entry)
    largest = min(*entry["a"].shape[-2:], entry["b"].shape[-1])
    if not 1 <= rank <= largest:
        raise ValueError(f"cannot truncate factors of rank {largest} to rank {rank}")
    left, core_left = qr(entry["a"])
    right, core_right = qr(_transpose(entry["b"]))
    core = product(core_left, _transpose(core_right))
    u, sigma, v = svd(core)
    root = jnp.sqrt(sigma[..., :rank])
    a = product(left, u[..., :rank]) * root[..., None, :]
    return {"a": a, "b": root[..., None] * product(v[..., :rank, :], _transpose(right))}


class Basis(NamedTuple):
    """Orthonormal bases of some deltas together.

    Attributes:
      left: columns, `[..., D, R']`.
      right: rows, `[..., R', K]`.
    """

    left: Array
    right: Array


def joint_basis(*entries: Entry) -> Basis:
    """The principal bases of some deltas together, `R' = R1 + R2 + ...` at most.

    `left` holds the left singular vectors of `[delta_1 delta_2 ...]`, `right` the right
    ones of the deltas stacked, so both depend on the deltas alone, up to signs: no
    choice of factors changes them. Directions that no delta uses are zero. Every delta
    is `left m right` without loss, `m` from `coordinates`. (Core Space, Panariello et
    al. 2025, arXiv 2509.17786, is the same space with bases of the factors.)
    """
    left, right, cores = _cores(entries)
    u = _principal(jnp.concatenate(cores, -1))
    v = _principal(jnp.concatenate([_transpose(core) for core in cores], -1))
    return Basis(product(left, u), _transpose(product(right, v)))


def _cores(entries: Sequence[Entry]) -> tuple[Array, Array, list[Array]]:
    """Orthonormal bases of all factors, and every delta between them."""
    entries = [plain(entry) for entry in entries]
    left, r_left = qr(jnp.concatenate([e["a"] for e in entries], -1))
    right, r_right = qr(jnp.concatenate([_transpose(e["b"]) for e in entries], -1))
    ends = np.cumsum([e["a"].shape[-1] for e in entries])[:-1].tolist()
    pairs = zip(jnp.split(r_left, ends, -1), jnp.split(r_right, ends, -1), strict=True)
    return left, right, [product(a, _transpose(b)) for a, b in pairs]


def _principal(matrix: Array) -> Array:
    """Left singular vectors; zero where the singular value is."""
    return thin_svd(matrix)[0]


def rows(right: Array, entry: Entry) -> Array:
    """A delta's rows in a basis of its outputs: `a (b right^T)` `[..., D, R']`."""
    entry = plain(entry)
    return product(entry["a"], product(entry["b"], _transpose(right)))


def coordinates(basis: Basis, entry: Entry) -> Array:
    """The core `m = left^T a b right^T` `[..., R', R']` of factors in a basis."""
    entry = plain(entry)
    inner = product(_transpose(basis.left), entry["a"])
    return product(inner, product(entry["b"], _transpose(basis.right)))


def norm(entry: Entry) -> Array:
    """The Frobenius norm of the delta, `[...]`, through QR of both factors.

    Examples:
      >>> entry = {"a": jnp.array([[3.0], [4.0]]), "b": jnp.ones((1, 1))}
      >>> round(float(norm(entry)), 5)
      5.0
    """
    _, _, (core,) = _cores([entry])
    return jnp.sqrt((core * core).sum((-2, -1)))


def balance(entry: Entry) -> Entry:
    """The same delta with factors of equal singular values: `a^T a = b b^T`, diagonal.

    The gauge that remains is an orthogonal matrix.
    """
    entry = plain(entry)
    return truncate(entry, rank=min(*entry["a"].shape[-2:], entry["b"].shape[-1]))


def align(reference: Entry, entry: Entry) -> Entry:
    """The same delta as `entry`, with factors turned towards the reference's.

    Orthogonal Procrustes over both factors: the rotation `Q` that minimises
    `|a_ref - a Q|^2 + |b_ref - Q^T b|^2` is the polar factor of
    `a^T a_ref + b b_ref^T`. Balance both first, so that only a rotation remains.

    Args:
      reference: the factors to turn towards.
      entry: the factors to turn.
    """
    reference, entry = plain(reference), plain(entry)
    towards = product(_transpose(entry["a"]), reference["a"])
    towards += product(entry["b"], _transpose(reference["b"]))
    u, _, v = svd(towards)
    turn = product(u, v)
    return {"a": product(entry["a"], turn), "b": product(_transpose(turn), entry["b"])}


def thin_svd(matrix: Array) -> tuple[Array, Array, Array]:
    """`u`, `sigma`, `v` of `u diag(sigma) v`, with zeros where nothing is used."""
    u, sigma, v = svd(matrix)
    used = sigma > _TOLERANCE * sigma[..., :1]
    sigma = jnp.where(used, sigma, 0)
    return u * used[..., None, :], sigma, used[..., None] * v


def polar(matrix: Array) -> Array:
    """The polar factor `M (M^T M)^(-1/2)`, zero where `M` is (pseudo-inverse)."""
    u, _, v = thin_svd(matrix)
    return product(u, v)


def least_squares(matrix: Array, target: Array) -> Array:
    """The `x` of least norm that minimises `|matrix x - target|` (pseudo-inverse)."""
    u, sigma, v = thin_svd(matrix)
    inverse = jnp.where(sigma > 0, 1 / jnp.where(sigma > 0, sigma, 1), 0)
    projected = inverse[..., None] * product(_transpose(u), target)
    return product(_transpose(v), projected)


def solve(matrix: Array, target: Array) -> Array:
    """The solution of `matrix x = target`, for a matrix that is not singular."""
    return _solve(matrix, target)[0]


def map_factors(fn: Callable[..., Entry], *adapters: Adapter) -> Adapter:
    """Apply a function of factors to every adapted module, modules of a shape at once.

    Modules that are trained whole are left out of the result.

    Args:
      fn: takes one entry of each adapter and returns an entry; it must accept leading
        axes.
      *adapters: of the same modules.
    """
    groups: dict[str, list[str]] = defaultdict(list)
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
