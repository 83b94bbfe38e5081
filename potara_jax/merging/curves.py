"""The loss along the segment of two models at a few weights, at several temperatures.

A curve is read where it is, not through its ends: the federated end of a client's
segment can be so high and so steep that a cubic through both ends has its minimum far
from the loss's own. One temperature for all clients divides the logits: a likelihood
`exp(-N loss)` of overconfident models believes few samples too much. It is the one that
is right at the best weight, since merged models can be as underconfident near one end
as they are overconfident near the other.

Letters: `C` clients, `N` samples, `P` weights on the segment, `T` temperatures, `W`
weights of the fine grid.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Array
from potara_jax.merging.combining import merge, pair
from potara_jax.merging.interface import Client
from potara_jax.merging.likelihoods import Logits
from potara_jax.merging.segment import POINTS

TEMPERATURES = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
_CONFIDENT = 1.645  # standard errors
_ROUNDING = 1e-6  # of a loss in float32


class Curves(NamedTuple):
    """What a client sends: means over its samples, at every temperature.

    Attributes:
      loss: `[T, P]`, at every weight.
      slope: `[T, 2]`, the mean of its samples' coefficients of `w` and `w^2`.
      spread: `[T, 2, 2]`, their covariance.
      count: its samples whose loss is a number everywhere.
    """

    loss: Array
    slope: Array
    spread: Array
    count: Array


# --- A client's curves ---------------------------------------------------------------


def measure(logits: Logits, client: Client, points: int) -> Curves:
    """The curves of a client at equally spaced weights.

    Args:
      logits: `(base, adapter, examples) -> [N, ..., K]`, of examples
        `(inputs, labels)`.
      client: its models and samples.
      points: the number of weights.
    """
    labels = client.examples[1]

    def at(weight: Array) -> Array:
        merged = merge((client.federated, client.local), pair(weight), space="delta")
        outputs = logits(client.base, merged, client.examples).astype(jnp.float32)
        losses = partial(cross_entropy, outputs, labels)
        return jax.lax.map(losses, jnp.asarray(TEMPERATURES))

    losses = jax.lax.map(at, jnp.linspace(0, 1, points))
    return summarise(losses.transpose(1, 2, 0), client.weight > 0)


def cross_entropy(logits: Array, labels: Array, temperature: Array) -> Array:
    """The loss of each example at a temperature, `[N]`: a mean over its labels.

    Args:
      logits: `[N, ..., K]`.
      labels: `[N, ...]`; negative ones are left out.
      temperature: a scalar that the logits are divided by.
    """
    log_p = jax.nn.log_softmax(logits / temperature)
    chosen = jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    kept = labels >= 0
    sums = (jnp.where(kept, x, 0.0).reshape(len(x), -1).sum(-1) for x in (chosen, kept))
    total, number = sums
    return -total / jnp.maximum(number, 1)


def summarise(losses: Array, real: Array) -> Curves:
    """The curves of samples' losses `[T, N, P]`; only the `real` ones `[N]` count."""
    kept = real & jnp.isfinite(losses).all((0, 2))
    share = kept / jnp.maximum(kept.sum(), 1)
    losses = jnp.where(kept[:, None], losses, 0.0)
    slopes = jnp.einsum(
        "tnp,pk->tnk", losses, _fit(losses.shape[-1]), precision="highest"
    )
    mean = jnp.einsum("n,tnk->tk", share, slopes, precision="highest")
    off = slopes - mean[:, None]
    spread = jnp.einsum("n,tnk,tnl->tkl", share, off, off, precision="highest")
    loss = jnp.einsum("n,tnp->tp", share, losses, precision="highest")
    return Curves(loss, mean, spread, kept.sum().astype(jnp.float32))


def _fit(points: int) -> np.ndarray:
    """From a curve's values to its least-squares coefficients of `w` and `w^2`."""
    at = np.linspace(0, 1, points)
    design = np.stack([np.ones(points), at, at**2], 1)
    return np.linalg.pinv(design)[1:].T.astype(np.float32)


# --- All clients' weights ------------------------------------------------------------


def best_temperature(curves: Curves) -> Array:
    """The number of the temperature of least pooled loss, at its best weight.

    Args:
      curves: of all clients.
    """
    pooled = (curves.count[:, None, None] * curves.loss).sum(0)
    return jnp.argmin(pooled.min(1))


def tempered(curves: Curves) -> tuple[Curves, Array]:
    """All clients' curves at the temperature of least loss, and the fine curves.

    The least loss is that of one temperature and one weight for all clients: the
    temperature is right where the pooled curve is lowest, whatever the confidence of
    the models elsewhere on the segment. The fine curves are cubic splines through the
    points, `[C, W]`.
    """
    best = best_temperature(curves)
    loss, slope, spread, count = curves
    chosen = Curves(loss[:, best], slope[:, best], spread[:, best], count)
    return chosen, chosen.loss @ spline(curves.loss.shape[-1]).T


def spline(points: int) -> np.ndarray:
    """From `P` values to their cubic spline's on the fine grid, `[W, P]`.

    The spline has equally spaced knots in [0, 1] and is without a knot at the second
    and at the last but one (de Boor 1978); `P` is 4 or more.
    """
    step = 1 / (points - 1)
    bends = np.zeros((points, points))  # equations of the second derivatives
    bends[0, :3] = bends[-1, -3:] = 1, -2, 1
    values = np.zeros((points, points))
    for i in range(1, points - 1):
        bends[i, i - 1 : i + 2] = np.array([1, 4, 1]) * step / 6
        values[i, i - 1 : i + 2] = np.array([1, -2, 1]) / step
    second = np.linalg.solve(bends, values)
    at = np.linspace(0, 1, POINTS)
    left = np.minimum((at / step).astype(int), points - 2)
    b = (at - left * step) / step
    a, identity = 1 - b, np.eye(points)
    curved = (a**3 - a)[:, None] * second[left] + (b**3 - b)[:, None] * second[left + 1]
    plain = a[:, None] * identity[left] + b[:, None] * identity[left + 1]
    return (plain + curved * step**2 / 6).astype(np.float32)


def shrunk(curves: Curves, fine: Array) -> Array:
    """All clients' curves, drawn to the pooled one as far as noise explains, `[C, W]`.

    A client's deviation from the pooled curve is `d_c . (w, w^2)`. With `S` the mean
    covariance of `d_c` that comes from few samples, and `B` the rest of the covariance
    between clients, the best linear prediction of the deviation is `B (B + S)^-1 d_c`.

    Args:
      curves: of one temperature, see `tempered`.
      fine: `[C, W]`.
    """
    present = curves.count > 0
    share = present / jnp.maximum(present.sum(), 1)
    pooled = (curves.count / jnp.maximum(curves.count.sum(), 1)) @ fine
    centre = share @ curves.slope
    off = jnp.where(present[:, None], curves.slope - centre, 0)
    between = jnp.einsum("c,ck,cl->kl", share, off, off, precision="highest")
    noise = curves.spread / jnp.maximum(curves.count - 1, 1)[:, None, None]
    within = jnp.einsum("c,ckl->kl", share, noise, precision="highest")
    signal = _positive(between - within)
    ridge = 1e-6 * (jnp.trace(signal + within) + 1e-12) * jnp.eye(2)
    kept = algebra.solve(signal + within + ridge, signal)
    at = jnp.linspace(0, 1, POINTS)
    return pooled + (off @ kept) @ jnp.stack([at, at**2])


def gains(curves: Curves) -> Array:
    """Which clients have a weight that beats both models with confidence, `[C]`.

    That is a measured weight whose mean loss is below that of the better model by more
    than 1.64 standard errors of the difference (one-sided, 5 %). A sample's difference
    is taken from its coefficients: that of the loss at `w` to the loss at an end `e` is
    `d . (w - e, w^2 - e^2)`. One sample or none shows nothing.

    Args:
      curves: of one temperature, see `tempered`.
    """
    at = jnp.linspace(0, 1, curves.loss.shape[-1])
    ends = curves.loss[:, jnp.array([0, -1])]
    end = jnp.argmin(ends, -1).astype(jnp.float32)[:, None]
    off = jnp.stack([at - end, at**2 - end**2], -1)
    variance = jnp.einsum(
        "cpk,ckl,cpl->cp", off, curves.spread, off, precision="highest"
    )
    error = jnp.sqrt(variance / jnp.maximum(curves.count - 1, 1)[:, None])
    least = ends.min(-1, keepdims=True)
    above = least - curves.loss > _CONFIDENT * error + _ROUNDING * (1 + least)
    return above.any(-1) & (curves.count > 1)


def _positive(matrix: Array) -> Array:
    """The nearest positive semi-definite matrix."""
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.maximum(values, 0)) @ vectors.T
