"""The loss on a few samples as a function of the merge weight, and its minimum.

Along the exact segment `w F + (1 - w) L` the samples' mean loss is a function of one
number. Two of its values and two of its slopes fix a cubic (Hermite), whose minimum is
in closed form; a grid needs a pass a point. The cubics of many clients, four numbers
each, also give a prior over the weights of each one. Letters: `C` clients, `T` points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Array
from potara_jax.merging.combining import merge, pair
from potara_jax.merging.interface import Client, Measured, Weight
from potara_jax.merging.likelihoods import Loss

POINTS = 101  # of the prior's grid
TAIL = 0.05  # of a posterior, on either side of its interval


# --- A client's loss -----------------------------------------------------------------


def segment_loss(
    loss: Loss, client: Client, space: str = "delta"
) -> Callable[[Weight], Array]:
    """A client's mean loss on its samples, as a function of the merge weight.

    The weight is in any form that a `Measured` has.

    Args:
      loss: `(base, adapter, examples) -> [N]`.
      client: its models and samples.
      space: where the models are merged.
    """

    def at(weight: Weight) -> Array:
        weights = weight if isinstance(weight, tuple) else pair(weight)
        merged = merge((client.federated, client.local), weights, space=space)
        losses = loss(client.base, merged, client.examples)
        total = jnp.where(client.weight > 0, client.weight * losses, 0).sum()
        return total / jnp.maximum(client.weight.sum(), 1e-30)

    return at


def halves(client: Client, per: str) -> Weight:
    """The weights 1/2 that every search starts from.

    Args:
      client: its models and samples.
      per: one weight a `client` or `module`.

    Raises:
      ValueError: `per` is neither.
    """
    if per not in ("client", "module"):
        raise ValueError(f"one weight per '{per}': use client or module")
    half = jnp.full_like(client.weight[0], 0.5)
    return half if per == "client" else dict.fromkeys(client.local, half)


# --- Grids ---------------------------------------------------------------------------


def grid_weight(loss: Loss, client: Client, points: int) -> Array:
    """The best of `points` equally spaced weights on a client's samples."""
    at = jnp.linspace(0, 1, points)
    return grid(jax.lax.map(segment_loss(loss, client), at), at)


def grid(losses: Array, points: Array) -> Array:
    """The grid point of least loss; of equal ones, the nearest to 1/2.

    Args:
      losses: `[..., T]`, at the points; one that is not a number counts as infinite.
      points: `[T]`.
    """
    losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
    best = losses == losses.min(-1, keepdims=True)
    distance = jnp.where(best, jnp.abs(points - 0.5), jnp.inf)
    return points[jnp.argmin(distance, -1)]


# --- Cubics --------------------------------------------------------------------------


class Cubic(NamedTuple):
    """Values `y` and slopes `d` of a segment's loss at weights 0 (local) and 1."""

    y0: Array
    d0: Array
    y1: Array
    d1: Array


def hermite(loss: Callable[[Array], Array]) -> Cubic:
    """The cubic of a loss: two passes, each with a Jacobian-vector product."""

    def end(weight: Array) -> tuple[Array, Array]:
        return jax.jvp(loss, (weight,), (jnp.ones(()),))

    return Cubic(*end(jnp.zeros(())), *end(jnp.ones(())))


def value(cubic: Cubic, weight: Array) -> Array:
    """A cubic at a weight."""
    c2, c3 = _coefficients(cubic)
    return cubic.y0 + weight * (cubic.d0 + weight * (c2 + weight * c3))


def _coefficients(cubic: Cubic) -> tuple[Array, Array]:
    y0, d0, y1, d1 = cubic
    return 3 * (y1 - y0) - 2 * d0 - d1, d0 + d1 - 2 * (y1 - y0)


def minimise(cubic: Cubic) -> Array:
    """Where in [0, 1] a cubic is least; where it is flat, 1/2.

    The minimum is among the middle, both ends and the roots of the derivative.
    """
    size = jnp.max(jnp.abs(jnp.stack(cubic)))
    cubic = Cubic(*(x / jnp.where(size > 0, size, 1) for x in cubic))
    c2, c3 = _coefficients(cubic)
    root = jnp.sqrt(jnp.maximum(c2**2 - 3 * c3 * cubic.d0, 0))
    stable = -(c2 + jnp.where(c2 < 0, -root, root))
    roots = jnp.stack([_divide(stable, 3 * c3), _divide(cubic.d0, stable)])
    roots = jnp.nan_to_num(jnp.clip(roots, 0, 1), nan=0.5)
    points = jnp.concatenate([jnp.array([0.5, 0.0, 1.0]), roots])
    return points[jnp.argmin(value(cubic, points))]


def _divide(numerator: Array, denominator: Array) -> Array:
    safe = denominator != 0
    return jnp.where(safe, numerator / jnp.where(safe, denominator, 1), 0.0)


def pooled(cubics: Cubic, counts: Array) -> Array:
    """One weight for all clients, `[C]`: the minimum of their mean cubic.

    Args:
      cubics: of the clients' losses.
      counts: numbers of samples, `[C]`, by which clients are weighted.
    """
    share = counts / counts.sum()
    finite = jnp.isfinite(jnp.stack(cubics)).all(0)
    mean = [jnp.where(finite, share * x, 0).sum() for x in cubics]
    return jnp.full(counts.shape, minimise(Cubic(*mean)))


def empirical_bayes(cubics: Cubic, counts: Array, *, steps: int = 200) -> Measured:
    """Every client's weight under a prior from all clients' cubics, `[C]`.

    A client's `N` samples have likelihood `exp(-N l(w))` at weight `w`, with `l` its
    cubic; see `posteriors`. Each client sends four numbers.

    Args:
      cubics: of the clients' losses.
      counts: numbers of samples, `[C]`.
      steps: of EM.
    """
    points = jnp.linspace(0, 1, POINTS)
    losses = jax.vmap(lambda *c: value(Cubic(*c), points))(*cubics)
    losses = jnp.where(jnp.isfinite(losses), losses, 0)
    return of_posteriors(posteriors(-counts[:, None] * losses, steps=steps))


def of_posteriors(posterior: Array) -> Measured:
    """Every client's weight `[C]` and its interval, from posteriors `[C, T]`.

    The weights are equally spaced in [0, 1]. A client's weight minimises the posterior
    mean of the squared error: it is the posterior mean.
    """
    points = jnp.linspace(0, 1, posterior.shape[-1])
    below = jnp.cumsum(posterior, -1)

    def quantile(share: float) -> Array:
        return points[jnp.argmax(below >= share * below[:, -1:], -1)]

    return Measured(posterior @ points, interval=(quantile(TAIL), quantile(1 - TAIL)))


def posteriors(log_likelihood: Array, *, steps: int) -> Array:
    """Every client's posterior under a prior from all clients' likelihoods, `[C, T]`.

    The prior over `T` weights is that of the highest marginal likelihood (Robbins 1956;
    EM on a grid from the uniform prior, Laird 1978).

    Args:
      log_likelihood: `[C, T]`; the posterior of a row that is constant is the prior.
      steps: of EM.
    """
    log_likelihood -= log_likelihood.max(-1, keepdims=True)

    def posterior(log_prior: Array) -> Array:
        return jax.nn.softmax(log_likelihood + log_prior, -1)

    def update(_: Array, log_prior: Array) -> Array:
        return jnp.log(posterior(log_prior).mean(0) + 1e-30)

    number = log_likelihood.shape[-1]
    uniform = jnp.full(number, -jnp.log(float(number)))
    return posterior(jax.lax.fori_loop(0, steps, update, uniform))
