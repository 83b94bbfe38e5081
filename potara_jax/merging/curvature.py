"""Diagonal Fisher information of two models on the same few samples, in one pass.

Per-sample gradients always: the square of a mean gradient is not a Fisher. A
*likelihood* gives, for one example, `Q` log-probabilities and their weights; the
gradients of the log-probabilities, each times the root of its weight, are the *scores*
whose second moments are accumulated:

    empirical      the data's label                     Q = 1
    exact          every class, weighted by its probability under the model (Q = K):
                   the Fisher itself, no label is used
    sampled        labels drawn from the model, with one noise for both models

Accumulated sample by sample in float32, so memory does not grow with the samples.
Kunstner et al. 2019 (arXiv 1905.12558) on why the empirical Fisher is another thing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Adapter, Array, Params

Example = Any
Logits = Callable[[Params, Adapter, Example], Array]
Likelihood = Callable[[Params, Adapter, Example, Array], tuple[Array, Array]]
Tree = Any

_NOISE = 1e-6  # of a float32 second moment: what rounding leaves of no variance


class Curvature(NamedTuple):
    """Statistics of both models' scores, each a pytree like the coordinates, float32.

    `federated`, `local`: mean squared score a sample, the diagonal Fisher.
    `correlation`: Pearson's correlation of the two models' scores, clipped to [0, 1].
    """

    federated: Tree
    local: Tree
    correlation: Tree


# --- Likelihoods: `(base, adapter, example, key) -> (log_p [Q], weight [Q])` ---------


def empirical(logits: Logits) -> Likelihood:
    """The log-likelihood of the data's label. Examples are `(inputs, label)`."""

    def likelihood(base, adapter, example, key):
        del key
        log_p = _log_softmax(logits(base, adapter, example))
        return log_p[example[1]][None], jnp.ones(1)

    return likelihood


def exact(logits: Logits) -> Likelihood:
    """All classes, weighted by the model's own probabilities."""

    def likelihood(base, adapter, example, key):
        del key
        log_p = _log_softmax(logits(base, adapter, example))
        return log_p, jnp.exp(log_p)

    return likelihood


def sampled(logits: Logits, *, draws: int = 1) -> Likelihood:
    """Labels drawn from the model; one key for both models couples their draws."""

    def likelihood(base, adapter, example, key):
        log_p = _log_softmax(logits(base, adapter, example))
        noise = jax.random.gumbel(key, (draws, log_p.shape[-1]))
        labels = jnp.argmax(jax.lax.stop_gradient(log_p) + noise, axis=-1)
        return log_p[labels], jnp.full(draws, 1 / draws)

    return likelihood


def _log_softmax(logits) -> Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32))


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "empirical": empirical,
    "exact": exact,
    "sampled": sampled,
}


# --- Accumulation --------------------------------------------------------------------


class _Sums(NamedTuple):
    mean: tuple[Tree, Tree]
    square: tuple[Tree, Tree]
    cross: Tree


def curvature(
    likelihood: Callable[[Tree, Example, Array], tuple[Array, Array]],
    federated: Tree,
    local: Tree,
    examples: Example,
    count: Array,
    key: Array,
    *,
    chunk: int = 10,
) -> Curvature:
    """The curvature of two models in shared coordinates on one client's samples.

    likelihood: `(theta, example, key) -> (log_p [Q], weight [Q])`.
    federated, local: coordinates `theta` of the two models.
    examples: a pytree with a leading axis of `N` samples, of which the first `count`
      are real; padded ones change nothing.
    key: consumed; sample `i` uses `fold_in(key, i)` for both models.
    chunk: samples whose scores are held at once: memory is `chunk * Q` gradients.
    """
    size = jax.tree.leaves(examples)[0].shape[0]
    chunk = min(chunk, size)
    starts = jnp.arange(0, size, chunk)
    one = jax.vmap(_sample_sums(likelihood, federated, local), in_axes=(0, 0, None))

    def add(sums, start):
        index = start + jnp.arange(chunk)
        real = index < count
        batch = jax.tree.map(lambda x: x[jnp.minimum(index, size - 1)], examples)
        terms = one(batch, index, key)
        total = lambda s, t: s + (jnp.where(_like(real, t), t, 0)).sum(0)
        return jax.tree.map(total, sums, terms), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), federated)
    initial = _Sums((zeros, zeros), (zeros, zeros), zeros)
    sums, _ = jax.lax.scan(add, initial, starts)
    return _finish(jax.tree.map(lambda s: s / jnp.maximum(count, 1), sums))


def _sample_sums(likelihood, federated, local):
    def sums(example, index, key) -> _Sums:
        key = jax.random.fold_in(key, index)
        scores = [_scores(likelihood, t, example, key) for t in (federated, local)]
        (g_f, m_f), (g_l, m_l) = scores
        square = lambda g: jax.tree.map(lambda x: (x * x).sum(0), g)
        cross = jax.tree.map(lambda f, own: (f * own).sum(0), g_f, g_l)
        return _Sums((m_f, m_l), (square(g_f), square(g_l)), cross)

    return sums


def _scores(likelihood, theta, example, key) -> tuple[Tree, Tree]:
    """Root-weighted scores `[Q, ...]` and their weighted mean, of one example."""

    def log_p(theta):
        values, weight = likelihood(theta, example, key)
        return values, jax.lax.stop_gradient(weight)

    rows, weight = jax.jacrev(log_p, has_aux=True)(theta)
    root = jnp.sqrt(weight)
    scaled = jax.tree.map(lambda g: g * _like(root, g), rows)
    return scaled, jax.tree.map(lambda g: jnp.tensordot(root, g, 1), scaled)


def _like(vector: Array, x: Array) -> Array:
    """A vector along the first axis of `x`."""
    return vector.reshape(-1, *[1] * (x.ndim - 1))


def _finish(means: _Sums) -> Curvature:
    (mean_f, mean_l), (square_f, square_l) = means.mean, means.square
    rho = jax.tree.map(_correlation, mean_f, mean_l, square_f, square_l, means.cross)
    return Curvature(square_f, square_l, rho)


def _correlation(mean_f, mean_l, square_f, square_l, cross):
    variance_f, variance_l = square_f - mean_f**2, square_l - mean_l**2
    defined = (variance_f > _NOISE * square_f) & (variance_l > _NOISE * square_l)
    deviation = lambda v: jnp.sqrt(jnp.where(defined, v, 1.0))
    root = deviation(variance_f) * deviation(variance_l)
    return jnp.where(defined, jnp.clip((cross - mean_f * mean_l) / root, 0, 1), 0.0)
