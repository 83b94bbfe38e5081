"""Diagonal Fisher information of two models on the same few samples, in one pass.

Gradients are always per sample: the square of a mean gradient is not a Fisher. The
gradients of a likelihood's log-probabilities (see `likelihoods`), each times the root
of its weight, are the *scores*. Their second moments are accumulated in float32 and in
chunks of samples, so that memory does not grow with the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Array
from potara_jax.merging.likelihoods import Example

Tree = Any
Scored = Callable[[Tree, Example, Array], tuple[Array, Array]]

_NOISE = 1e-6  # of a float32 second moment: no variance, but for rounding


class Curvature(NamedTuple):
    """Statistics of both models' scores, each a pytree like the coordinates, float32.

    Attributes:
      federated: mean squared score a sample, the diagonal Fisher.
      local: mean squared score a sample, the diagonal Fisher.
      correlation: of the two models' scores, clipped to [0, 1].
      mean: of all entries of both Fishers, a scalar.
      square: the squared norm of both models' coordinates together, a scalar.
      distance: the squared distance between them, a scalar.
      used: False for coordinates that stand for nothing, see `spaces.Coordinates`,
        which then count nowhere; None where all stand for something.
    """

    federated: Tree
    local: Tree
    correlation: Tree
    mean: Array
    square: Array
    distance: Array
    used: Tree | None = None


# --- Accumulation --------------------------------------------------------------------


class Scores(NamedTuple):
    """One example's scores.

    Attributes:
      rows: a score for each label, `[Q, ...]`.
      mean: their weighted mean, `[...]`.
    """

    rows: Tree
    mean: Tree


def accumulate(
    statistic: Callable[[Scores, Scores], Tree],
    likelihood: Scored,
    thetas: tuple[Tree, Tree],
    examples: Example,
    weight: Array,
    key: Array,
    *,
    chunk: int,
) -> Tree:
    """The weighted mean over samples of a statistic of both models' scores.

    Gradients do not depend on the weight: under `jax.vmap` over weights alone they are
    computed once.

    Args:
      statistic: of one sample's scores under the two models.
      likelihood: `(theta, example, key) -> (log_p [Q], weight [Q])`.
      thetas: coordinates of the two models.
      examples: a pytree with a leading axis of `N` samples.
      weight: `[N]`, zero for a padded sample, which then changes nothing.
      key: consumed; sample `i` uses `fold_in(key, i)` for both models.
      chunk: samples whose scores are held at once.
    """
    size = jax.tree.leaves(examples)[0].shape[0]
    chunk = min(chunk, size)
    one = jax.vmap(_statistic(statistic, likelihood, thetas), in_axes=(0, 0, None))

    def add(sums: Tree, start: Array) -> tuple[Tree, None]:
        index = start + jnp.arange(chunk)
        place = jnp.minimum(index, size - 1)
        share = jnp.where(index < size, weight[place], 0)
        terms = one(jax.tree.map(lambda x: x[place], examples), index, key)
        return jax.tree.map(lambda s, t: s + _weighted(share, t), sums, terms), None

    first = jax.tree.map(lambda x: x[0], examples)
    shapes = jax.eval_shape(_statistic(statistic, likelihood, thetas), first, 0, key)
    initial = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    sums, _ = jax.lax.scan(add, initial, jnp.arange(0, size, chunk))
    return jax.tree.map(lambda s: s / jnp.maximum(weight.sum(), 1e-30), sums)


def _weighted(share: Array, terms: Array) -> Array:
    kept = jnp.where(_like(share > 0, terms), terms, 0)
    return jnp.einsum("n,n...->...", share, kept, precision="highest")


def _statistic(
    statistic: Callable[[Scores, Scores], Tree],
    likelihood: Scored,
    thetas: tuple[Tree, Tree],
) -> Callable[[Example, Array, Array], Tree]:
    """The statistic of one example, by its number."""

    def of_example(example: Example, index: Array, key: Array) -> Tree:
        key = jax.random.fold_in(key, index)
        return statistic(*(_scores(likelihood, t, example, key) for t in thetas))

    return of_example


def _scores(likelihood: Scored, theta: Tree, example: Example, key: Array) -> Scores:
    def log_p(theta: Tree) -> tuple[Array, Array]:
        values, weight = likelihood(theta, example, key)
        return values, jax.lax.stop_gradient(weight)

    rows, weight = jax.jacrev(log_p, has_aux=True)(theta)
    root = jnp.sqrt(weight)
    scaled = jax.tree.map(lambda g: g * _like(root, g), rows)
    return Scores(scaled, jax.tree.map(lambda g: jnp.tensordot(root, g, 1), scaled))


def _like(vector: Array, x: Array) -> Array:
    """A vector along the first axis of `x`."""
    return vector.reshape(-1, *[1] * (x.ndim - 1))


def real(examples: Example, count: Array) -> Array:
    """Weights of samples, `[N]`: zero for one that is padded or left out, else one.

    Args:
      examples: a pytree with a leading axis of `N` samples; one with an input that is
        not finite is left out.
      count: how many of them, from the first, are not padded.
    """
    leaves = jax.tree.leaves(examples)
    kept = jnp.arange(leaves[0].shape[0]) < count
    for x in leaves:
        kept &= jnp.isfinite(x).all(range(1, x.ndim))
    return kept.astype(jnp.float32)


def finite(examples: Example) -> Example:
    """Examples with zeros for inputs that are not finite.

    `real` leaves them out, but a gradient through them would be no number, even with a
    weight of zero.

    Args:
      examples: a pytree.
    """
    kept = lambda x: jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))
    return jax.tree.map(kept, examples)


def mean_of(tree: Tree, used: Tree | None = None) -> Array:
    """The mean of all entries, or of those that are used."""
    leaves = jax.tree.leaves(tree)
    total: Any = sum(x.sum() for x in leaves)
    if used is None:
        return total / sum(x.size for x in leaves)
    count: Any = sum(x.sum() for x in jax.tree.leaves(used))
    return total / jnp.maximum(count, 1)


def geometry(federated: Tree, local: Tree) -> tuple[Array, Array]:
    """The squared norm of two models' coordinates together, and of their difference."""
    both = jax.tree.map(lambda x: x.astype(jnp.float32), (federated, local))
    return _square(both), _square(jax.tree.map(jnp.subtract, *both))


def _square(tree: Tree) -> Array:
    total: Any = sum((x * x).sum() for x in jax.tree.leaves(tree))
    return total


# --- The diagonal --------------------------------------------------------------------


class _Moments(NamedTuple):
    mean: tuple[Tree, Tree]
    square: tuple[Tree, Tree]
    cross: Tree


def curvature(
    likelihood: Scored,
    federated: Tree,
    local: Tree,
    examples: Example,
    weight: Array,
    key: Array,
    *,
    chunk: int = 10,
    used: Tree | None = None,
) -> Curvature:
    """The diagonal Fisher of two models in shared coordinates on a client's samples.

    Args:
      likelihood: `(theta, example, key) -> (log_p [Q], weight [Q])`.
      federated: coordinates `theta` of the federated model.
      local: coordinates of the local one, of the same structure.
      examples: a pytree with a leading axis of `N` samples.
      weight: `[N]`, of every sample: see `real` for padded ones; a bootstrap draws it.
      key: consumed; sample `i` uses `fold_in(key, i)` for both models.
      chunk: samples whose scores are held at once: memory is `2 chunk Q` gradients.
      used: booleans like `federated`, see `Curvature`.
    """
    thetas = federated, local
    m = accumulate(_moments, likelihood, thetas, examples, weight, key, chunk=chunk)
    rho = jax.tree.map(_correlation, *m.mean, *m.square, m.cross)
    squares, sizes = m.square, geometry(*thetas)
    mean = mean_of(squares, None if used is None else (used, used))
    return Curvature(squares[0], squares[1], rho, mean, *sizes, used)


def _moments(federated: Scores, local: Scores) -> _Moments:
    def product(first: Scores, second: Scores) -> Tree:
        return jax.tree.map(lambda x, y: (x * y).sum(0), first.rows, second.rows)

    squares = product(federated, federated), product(local, local)
    cross = product(federated, local)
    return _Moments((federated.mean, local.mean), squares, cross)


def _correlation(
    mean_f: Array, mean_l: Array, square_f: Array, square_l: Array, cross: Array
) -> Array:
    variance_f, variance_l = square_f - mean_f**2, square_l - mean_l**2
    defined = (variance_f > _NOISE * square_f) & (variance_l > _NOISE * square_l)
    root_f, root_l = (
        jnp.sqrt(jnp.where(defined, v, 1.0)) for v in (variance_f, variance_l)
    )
    root = root_f * root_l
    return jnp.where(defined, jnp.clip((cross - mean_f * mean_l) / root, 0, 1), 0.0)
