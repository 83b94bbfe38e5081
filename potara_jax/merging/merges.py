"""Merges: one adapter out of several, in a space, with given weights.

A `Merge` combines what adapters have in one space, array by array: `merge` is the one
way to use it. Weights `w_i` are scalars (one a client), dictionaries by module path, or
pytrees like the coordinates; methods that were published as a plain sum of `n` task
vectors take `n w_i`, which is 1 at equal weights. Everything is for one client;
`jax.vmap` gives the client axis. Letters: `n` adapters, `D` inputs, `K` outputs.

Modules that are trained whole are averaged with the weights, whatever the method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Adapter, Array, Entry, is_factors
from potara_jax.merging import spaces

Weight = Any  # a scalar, {path: scalar}, or a pytree like the coordinates
ANY = ("delta", "core", "knots", "factor", "aligned")
DENSE = ("core", "knots", "factor", "aligned")
_EPSILON = 1e-8
_RIDGE = 1e-4  # of a mean diagonal element


class Place(NamedTuple):
    """Which array is merged: its module's path, and a key of its own (or None)."""

    path: str
    key: Array | None


class Merge(NamedTuple):
    """How to combine the arrays `[..., rows, columns]` that adapters have in a space.

    `combine(arrays, weights, place)`; `spaces` are those where it makes sense, the best
    first; `random` says that it needs a key.
    """

    name: str
    combine: Callable[[Sequence[Array], Sequence[Any], Place], Array]
    spaces: tuple[str, ...]
    random: bool = False


def merge(
    adapters: Sequence[Adapter],
    weights: Sequence[Weight] | None = None,
    *,
    method: Merge | None = None,
    space: str | None = None,
    rank: int | None = None,
    key: Array | None = None,
) -> Adapter:
    """Adapters of one client merged into one, with plain factors.

    weights: one an adapter; default `1/n` each. See the module.
    method: how; default `linear()`.
    space: where; default the first of `method.spaces`.
    rank: truncate every merged delta to this rank (Eckart-Young); default: keep the
      exact rank, `R` in `factor` and `aligned`, the sum of the ranks otherwise.
    key: consumed by methods that draw at random.

    Raises `ValueError` for a space that the method or the ranks do not fit, adapters
    of different modules, a rank that is too high, and where a key is missing.
    """
    method = method or linear()
    if not isinstance(method, Merge):
        raise ValueError(f"method is {method!r:.40}: it must be one such as linear()")
    space = _checked_space(method, space)
    _check(adapters, weights, method, key)
    count = len(adapters)
    weights = [1 / count] * count if weights is None else weights
    by_path = [per_module(w, adapters[0]) for w in weights]
    coordinates = spaces.SPACES[space].coordinates(adapters)
    theta = _combined(coordinates.thetas, by_path, method, adapters[0], key)
    merged = spaces.plain(coordinates.assemble(theta))
    return merged if rank is None else truncate(merged, rank=rank)


def _checked_space(method: Merge, space: str | None) -> str:
    if space is None:
        return method.spaces[0]
    if space not in method.spaces:
        fit = ", ".join(method.spaces)
        raise ValueError(
            f"'{method.name}' does not merge in '{space}' space, but: {fit}"
        )
    return space


def _check(adapters, weights, method, key) -> None:
    if not adapters:
        raise ValueError("there is no adapter to merge")
    if weights is not None and not isinstance(weights, Sequence):
        raise ValueError(f"weights are a list with one an adapter, not {weights!r:.40}")
    if weights is not None and len(weights) != len(adapters):
        raise ValueError(f"{len(adapters)} adapters need as many weights")
    for adapter in adapters[1:]:
        other = sorted(set(adapter) ^ set(adapters[0]))
        if other:
            raise ValueError(f"only one of two adapters has '{other[0]}'")
        for path in adapter:
            _check_entries(path, adapters[0][path], adapter[path])
    for weight in weights or ():
        _check_weight(weight, adapters[0])
    if method.random and key is None:
        raise ValueError(f"'{method.name}' draws at random: give it a key")


def _check_entries(path: str, first: Entry, second: Entry) -> None:
    """Raise `ValueError` where two entries are not of one kind and size."""
    ends = lambda e: (*e["a"].shape[:-1], e["b"].shape[-1])
    of = lambda e: ends(e) if is_factors(e) else jax.tree.map(jnp.shape, e)
    if is_factors(first) != is_factors(second) or of(first) != of(second):
        raise ValueError(f"two adapters have '{path}' of {of(first)} and {of(second)}")


def _check_weight(weight: Weight, adapter: Adapter) -> None:
    """Raise `ValueError` for a weight of no form that `merge` accepts."""
    if isinstance(weight, Mapping):
        missing = sorted(set(adapter) - set(weight))
        if missing:
            raise ValueError(f"the weights have none for '{missing[0]}'")
    elif jnp.ndim(weight) > 0:
        raise ValueError(
            f"a weight of shape {jnp.shape(weight)}: one is a scalar; use jax.vmap "
            "over clients"
        )


def _combined(thetas, weights, method, adapter, key) -> Adapter:
    """Every module's arrays combined; whole modules by their weighted sum."""
    combined = {}
    for number, path in enumerate(sorted(adapter)):
        how = method if is_factors(adapter[path]) else linear()
        place = Place(path, None if key is None else jax.random.fold_in(key, number))
        entries = [theta[path] for theta in thetas]
        combined[path] = _module(entries, [w[path] for w in weights], how, place)
    return {path: combined[path] for path in adapter}


def _module(entries, weights, method, place) -> dict[str, Array]:
    for weight in weights:
        if isinstance(weight, Mapping) and set(weight) != set(entries[0]):
            raise ValueError(
                f"'{place.path}' has a weight for each of {sorted(weight)}, where its "
                f"coordinates are {sorted(entries[0])}: merge in the space that the "
                "weights were made in ('core', for Fisher's)"
            )

    def one(number, name):
        own = [w[name] if isinstance(w, Mapping) else w for w in weights]
        key = None if place.key is None else jax.random.fold_in(place.key, number)
        values = [entry[name] for entry in entries]
        return method.combine(values, own, place._replace(key=key))

    return {name: one(i, name) for i, name in enumerate(sorted(entries[0]))}


def per_module(weight: Weight, adapter: Adapter) -> dict[str, Weight]:
    """The weight of every module, from any of the forms that `merge` accepts."""
    return weight if isinstance(weight, Mapping) else dict.fromkeys(adapter, weight)


def pair(weight: Weight) -> tuple[Weight, Weight]:
    """The weights `(w, 1 - w)` of a federated and a local adapter."""
    return weight, jax.tree.map(lambda w: 1 - w, weight)


def truncate(adapter: Adapter, *, rank: int) -> Adapter:
    """Every delta at the nearest point of a rank; whole modules are kept."""
    whole = {path: entry for path, entry in adapter.items() if not is_factors(entry)}
    return whole | algebra.map_factors(
        lambda entry: algebra.truncate(entry, rank=rank), adapter
    )


# --- Sums ----------------------------------------------------------------------------


def linear() -> Merge:
    """The weighted sum `sum_i w_i theta_i`; uniform model soup at equal weights.

    Exact in `delta`, `core` and `knots`, where it is one function. In `factor`,
    `exact - factor = w (1 - w) (a_F - a_L) (b_F - b_L)` for two adapters.
    """
    return Merge("linear", _weighted_sum, ANY)


def _weighted_sum(values, weights, place=None) -> Array:
    del place
    return sum(w * x for w, x in zip(weights, values, strict=True))


def task_arithmetic(*, scale: float = 0.3) -> Merge:
    """The scaled sum of the task vectors, `scale * sum_i n w_i theta_i`.

    Ilharco et al. 2023 (arXiv 2212.04089); their 0.3 was for eight tasks.
    """
    _check_finite("scale", scale)

    def combine(values, weights, place):
        return scale * len(values) * _weighted_sum(values, weights)

    return Merge("task_arithmetic", combine, ANY)


def slerp() -> Merge:
    """Spherical interpolation of two adapters, array by array (Shoemake 1985).

        sin((1 - t) W) / sin W x + sin(t W) / sin W y,    t = w_2 / (w_1 + w_2)

    with `W` the angle between `x` and `y`; linear where they are parallel (cosine above
    0.9995, as in mergekit). Raises `ValueError` for more than two adapters.
    """

    def combine(values, weights, place):
        if len(values) != 2:
            raise ValueError(f"'slerp' merges two adapters, not {len(values)}")
        first, second = values
        if _known(sum(weights) == 0):
            raise ValueError("'slerp' divides by the sum of the weights, which is 0")
        t = weights[1] / (weights[0] + weights[1])
        cosine = _cosine(first, second)
        angle = jnp.arccos(jnp.clip(cosine, -1, 1))
        parallel = jnp.abs(cosine) > 0.9995
        sine = jnp.where(parallel, 1.0, jnp.sin(angle))
        one = jnp.where(parallel, 1 - t, jnp.sin((1 - t) * angle) / sine)
        two = jnp.where(parallel, t, jnp.sin(t * angle) / sine)
        return one * first + two * second

    return Merge("slerp", combine, DENSE)


def _known(condition) -> bool:
    """Whether a condition holds, as far as it is known before the program runs."""
    return isinstance(condition, bool | np.bool_) and bool(condition)


def _cosine(first, second) -> Array:
    """The cosine of two arrays' last two axes, `[..., 1, 1]`, at any scale."""
    total = lambda x: x.sum((-2, -1), keepdims=True)
    size = lambda x: jnp.abs(x).max((-2, -1), keepdims=True)
    scaled = lambda x: x / jnp.where(size(x) > 0, size(x), 1)
    first, second = scaled(first), scaled(second)
    length = jnp.sqrt(total(first**2) * total(second**2))
    return total(first * second) / jnp.where(length > 0, length, 1)


# --- Trimming and dropping -----------------------------------------------------------


def ties(*, density: float = 0.2, scale: float = 1.0) -> Merge:
    """Trim, elect signs, and average what agrees (TIES).

    Of every array the share `density` of largest magnitude is kept; the sign of an
    entry is that of the weighted sum; the entries of that sign are averaged with their
    weights (as in mergekit; the divisor is the weights that agree), times `scale`.
    Yadav et al. 2023 (arXiv 2306.01708).
    """
    _check_share("density", density)
    _check_finite("scale", scale)

    def combine(values, weights, place):
        trimmed = [_trim(x, density) for x in values]
        sign = jnp.where(_weighted_sum(trimmed, weights) >= 0, 1.0, -1.0)
        own = zip(trimmed, weights, strict=True)
        agree = [(w * x * sign > 0) * w for x, w in own]
        total = sum(map(jnp.abs, agree))
        mean = _weighted_sum(trimmed, agree) / jnp.where(total > 0, total, 1)
        return scale * mean

    return Merge("ties", combine, DENSE)


def _trim(x: Array, density: float) -> Array:
    """The entries of largest magnitude of every `[rows, columns]`; the rest zero."""
    size = x.shape[-2] * x.shape[-1]
    kept = max(1, round(density * size))
    if kept == size:
        return x
    flat = jnp.abs(x).reshape(*x.shape[:-2], size)
    threshold = jnp.sort(flat, -1)[..., size - kept, None, None]
    return jnp.where(jnp.abs(x) >= threshold, x, 0)


def dare(*, density: float = 0.5, draws: int = 1, scale: float = 1.0) -> Merge:
    """Drop entries at random, rescale the rest by `1 / density`, and sum (DARE).

    The expectation is `linear()`; an entry's variance is `x^2 (1 - density) / density`
    a draw, and the mean over several `draws` divides it by their number.
    Yu et al. 2024 (arXiv 2311.03099).
    """
    _check_share("density", density)
    _check_finite("scale", scale)
    if draws < 1:
        raise ValueError(f"draws is {draws}: it must be 1 or more")

    def combine(values, weights, place):
        def draw(key):
            keys = jax.random.split(key, len(values))
            dropped = [_drop(k, x, density) for k, x in zip(keys, values, strict=True)]
            return _weighted_sum(dropped, weights)

        total = lambda i, sum_: sum_ + draw(jax.random.fold_in(place.key, i))
        start = jnp.zeros_like(values[0])
        return scale / draws * jax.lax.fori_loop(0, draws, total, start)

    return Merge("dare", combine, DENSE, random=True)


def _drop(key, x, density) -> Array:
    return jnp.where(jax.random.bernoulli(key, density, x.shape), x / density, 0)


def _check_finite(name: str, value: float) -> None:
    if not abs(value) < float("inf"):
        raise ValueError(f"{name} is {value}: it must be a finite number")


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} is {value}: it must be above 0 and at most 1")


# --- Singular subspaces --------------------------------------------------------------
# In `core` the bases around a matrix are orthonormal, so its singular values are the
# delta's.


def tsv(*, scale: float = 1.0) -> Merge:
    """Task singular vectors, made orthogonal across adapters before they are summed.

    With the SVDs `theta_i = P_i S_i Q_i^T` side by side, `P = [P_1 ...]`, the result is
    `scale * polar(P) diag(n w_i S_i) polar(Q)^T`. No vector is left out: the ranks of
    adapters fit beside each other. TSV-M, Gargiulo et al. 2025 (arXiv 2412.00081).
    """

    _check_finite("scale", scale)

    def combine(values, weights, place):
        p, sigma, q = zip(*(algebra.thin_svd(x) for x in values), strict=True)
        left = algebra.polar(jnp.concatenate(p, -1))
        right = algebra.polar(jnp.concatenate(q, -2))
        n = len(values)
        weighted = [n * w * s for w, s in zip(weights, sigma, strict=True)]
        return scale * algebra.product(
            left * jnp.concatenate(weighted, -1)[..., None, :], right
        )

    return Merge("tsv", combine, ("core",))


def iso(*, scale: float = 1.0) -> Merge:
    """The sum of the task vectors with all its singular values made equal.

    Their mean, over the directions that are used: the mean over all `min(D, K)` values
    would be taken over zeros, and fill the null space. Iso-C, Marczak et al. 2025
    (arXiv 2502.04959), restricted to the non-zero subspace.
    """

    _check_finite("scale", scale)

    def combine(values, weights, place):
        u, sigma, v = algebra.thin_svd(len(values) * _weighted_sum(values, weights))
        used = sigma > 0
        count = jnp.maximum(used.sum(-1, keepdims=True), 1)
        mean = sigma.sum(-1, keepdims=True) / count
        return scale * algebra.product(u * (used * mean)[..., None, :], v)

    return Merge("iso", combine, ("core",))


def wudi(*, ridge: float = 0.0) -> Merge:
    """The delta that interferes least with each task's input subspace (WUDI).

    Minimises `sum_i w_i |theta_i^T (theta - theta_i)|^2 / |theta_i|^2` in closed form:
    the least squares of `A_i theta = A_i theta_i` with `A_i = sqrt(w_i) theta_i^T /
    |theta_i|`, the solution of least norm. Cheng et al. 2025 (arXiv 2503.08099) descend
    towards it from the sum `sum_i n w_i theta_i` and stop early; it is RegMean with the
    deltas for data.

    Without `ridge` the equations can mostly be met exactly, and weights change nothing.

    ridge: how strongly the solution is drawn to that sum, as a share of the mean
      squared singular value of the rows `A_i`. Without it the result explodes where the
      deltas read nearly parallel inputs, as those of one initialisation do.
    """
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge is {ridge}: it must be 0 or more, and finite")

    def combine(values, weights, place):
        if any(_known(w < 0) for w in weights):
            raise ValueError("'wudi' needs weights of 0 or more")
        rows = [
            jnp.sqrt(w) * _unit_transpose(x)
            for w, x in zip(weights, values, strict=True)
        ]
        wanted = [algebra.product(a, x) for a, x in zip(rows, values, strict=True)]
        if ridge:
            start = len(values) * _weighted_sum(values, weights)
            own = jnp.sqrt(ridge / start.shape[-2]) * jnp.eye(start.shape[-2])
            rows.append(jnp.broadcast_to(own, (*start.shape[:-2], *own.shape)))
            wanted.append(algebra.product(own, start))
        return algebra.least_squares(
            jnp.concatenate(rows, -2), jnp.concatenate(wanted, -2)
        )

    return Merge("wudi", combine, ("core",))


def _unit_transpose(x) -> Array:
    size = jnp.abs(x).max((-2, -1), keepdims=True)
    x = x / jnp.where(size > 0, size, 1)
    length = jnp.sqrt((x * x).sum((-2, -1), keepdims=True))
    return jnp.swapaxes(x, -1, -2) / jnp.where(length > 0, length, 1)


# --- With statistics of the inputs ---------------------------------------------------


def regmean(
    grams: Sequence[Mapping[str, Array]], *, off_diagonal: float = 0.95
) -> Merge:
    """The delta whose outputs are nearest to every adapter's on its own inputs.

        delta = (sum_i w_i G_i)^-1 sum_i w_i G_i delta_i,    G_i = X_i^T X_i

    grams: for every adapter, `{path: [D, D]}` of the inputs of every adapted module.
    off_diagonal: what the off-diagonal elements are multiplied with (0.95 for CLIP).
    Where no input has been, the result is the weighted mean. Jin et al. 2023 (arXiv
    2212.09849). The deltas need not be formed: only their rows are mixed.
    """

    def combine(values, weights, place):
        known = [_shrunk(gram[place.path], off_diagonal) for gram in grams]
        own = [w * gram for w, gram in zip(weights, known, strict=True)]
        total, size = sum(own), own[0].shape[-1]
        ridge = _RIDGE * jnp.trace(total) / size + _EPSILON
        towards = sum(algebra.product(g, x) for g, x in zip(own, values, strict=True))
        mean = _weighted_sum(values, weights) / sum(weights)
        return algebra.solve(total + ridge * jnp.eye(size), towards + ridge * mean)

    return Merge("regmean", combine, ("knots",))


def _shrunk(gram, off_diagonal) -> Array:
    eye = jnp.eye(gram.shape[-1])
    return gram * (eye + (1 - eye) * off_diagonal)
