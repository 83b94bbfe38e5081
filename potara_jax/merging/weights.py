"""Merge weights: how much of the federated model each client takes.

Potara's closed form (Zou et al. 2026, arXiv 2602.18658), from the posterior variances
of the two models, and two competitors that see the loss on the same samples: a cubic
model of it along the segment, and a grid. A weight multiplies the federated adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Array
from potara_jax.merging.curvature import Curvature

Tree = Any
Damping = Callable[[Tree, Tree, Array], tuple[Tree, Tree]]
_CLAMP = 1 - 1e-6


class Traces(NamedTuple):
    """Traces of the posterior covariances: federated, local, and across the two."""

    federated: Array
    local: Array
    cross: Array


# --- Damping: from Fisher information to posterior variance --------------------------


def laplace(tau: float) -> Damping:
    """Laplace posterior variance `1 / (N F + tau)`: `tau` is the prior precision."""

    def variances(federated, local, examples):
        of = lambda tree: jax.tree.map(lambda f: 1 / (examples * f + tau), tree)
        return of(federated), of(local)

    return variances


def relative(epsilon: float) -> Damping:
    """`1 / (F + d)` with one `d = epsilon * mean(F)` over both models.

    A damping of each model's own would leave the traces as far apart as the means are.
    """

    def variances(federated, local, examples):
        del examples
        mean = _mean([federated, local])
        floor = jnp.where(mean > 0, epsilon * mean, 1.0)
        of = lambda tree: jax.tree.map(lambda f: 1 / (f + floor), tree)
        return of(federated), of(local)

    return variances


def quantile(q: float) -> Damping:
    """`1 / max(F, d)` with `d` the `q`-quantile of both models' positive entries."""

    def variances(federated, local, examples):
        del examples
        both = jnp.concatenate([x.ravel() for x in jax.tree.leaves([federated, local])])
        floor = jnp.nanquantile(jnp.where(both > 0, both, jnp.nan), q)
        floor = jnp.where(jnp.isnan(floor), 1.0, floor)
        of = lambda tree: jax.tree.map(lambda f: 1 / jnp.maximum(f, floor), tree)
        return of(federated), of(local)

    return variances


def harmonic(epsilon: float) -> Damping:
    """The harmonic bound on a module's trace, `n^2 / sum F`, with relative damping.

    By Jensen it is below `sum 1/F`, and finite unless the module's whole `F` is zero.
    """

    def variances(federated, local, examples):
        averaged = [
            {path: _flat(module) for path, module in tree.items()}
            for tree in (federated, local)
        ]
        return relative(epsilon)(*averaged, examples)

    return variances


DAMPINGS: dict[str, Callable[[float], Damping]] = {
    "laplace": laplace,
    "relative": relative,
    "quantile": quantile,
    "harmonic": harmonic,
}


def _mean(trees) -> Array:
    leaves = jax.tree.leaves(trees)
    return sum(x.sum() for x in leaves) / sum(x.size for x in leaves)


def _flat(module) -> Tree:
    mean = _mean(module)
    return jax.tree.map(lambda x: jnp.full_like(x, mean), module)


# --- The closed form -----------------------------------------------------------------


def variance_traces(
    curvature: Curvature, damping: Damping, examples: Array, *, per: str = "client"
) -> Any:
    """`tr S_F`, `tr S_L`, `tr S_FL` of one client, `S_FL = rho sqrt(S_F S_L)`.

    examples: the client's number of training examples, the `N` of `laplace`.
    per: `client` (one `Traces`), `module` (one a module path) or `parameter` (one a
      coordinate).
    """
    s_f, s_l = damping(curvature.federated, curvature.local, examples)
    across = lambda rho, f, own: rho * jnp.sqrt(f) * jnp.sqrt(own)  # no overflow
    s_fl = jax.tree.map(across, curvature.correlation, s_f, s_l)
    if per not in ("client", "module", "parameter"):
        raise ValueError(f"one weight per '{per}': use client, module or parameter")
    if per == "parameter":
        return jax.tree.map(Traces, s_f, s_l, s_fl)
    if per == "module":
        return {m: Traces(_sum(s_f[m]), _sum(s_l[m]), _sum(s_fl[m])) for m in s_f}
    return Traces(_sum(s_f), _sum(s_l), _sum(s_fl))


def _sum(tree) -> Array:
    return sum(x.sum() for x in jax.tree.leaves(tree))


def closed_form(traces: Traces) -> Array:
    """The weight that minimises the merged variance, elementwise.

        g(w) = w^2 a + (1-w)^2 b + 2 w (1-w) c      a, b, c: federated, local, cross
        w*   = (b - c) / (a + b - 2c)

    `c` is clamped to the paper's assumption `c <= min(a, b)`, so `w*` is in [0, 1] with
    no clipping; where the two models are one (`a = b = c`), or a trace is not a number,
    it is 1/2. Scaling all three by one constant changes nothing.
    """
    a, b, c = traces
    c = jnp.minimum(c, _CLAMP * jnp.minimum(a, b))
    log_odds = jnp.log(b - c) - jnp.log(a - c)
    return jax.nn.sigmoid(jnp.where(jnp.isnan(log_odds), 0.0, log_odds))


def potara_weight(
    curvature: Curvature, damping: Damping, examples: Array, *, per: str = "client"
) -> Any:
    """Potara's weight of one client: a scalar, `{path: w}`, or one a coordinate."""
    traces = variance_traces(curvature, damping, examples, per=per)
    is_traces = lambda x: isinstance(x, Traces)
    return jax.tree.map(closed_form, traces, is_leaf=is_traces)


# --- Weights that see the loss on the samples ----------------------------------------


def hermite(loss: Callable[[Array], Array]) -> Array:
    """The minimiser on [0, 1] of the cubic through the ends of a segment.

    loss: the samples' mean loss at weight `w` (1: federated, 0: local). Two values and
    two slopes, each a forward pass with a Jacobian-vector product, fix the cubic; its
    minimum is among both ends and the roots of its derivative.
    """
    end = lambda w: jax.jvp(loss, (w,), (jnp.ones(()),))
    (y0, d0), (y1, d1) = end(jnp.zeros(())), end(jnp.ones(()))
    return minimise_cubic(y0, d0, y1, d1)


def minimise_cubic(y0: Array, d0: Array, y1: Array, d1: Array) -> Array:
    """Where in [0, 1] the cubic with values `y` and slopes `d` at 0 and 1 is least."""
    c2, c3 = 3 * (y1 - y0) - 2 * d0 - d1, d0 + d1 - 2 * (y1 - y0)
    value = lambda w: y0 + w * (d0 + w * (c2 + w * c3))
    root = jnp.sqrt(jnp.maximum(c2**2 - 3 * c3 * d0, 0))
    stable = -(c2 + jnp.where(c2 < 0, -root, root))
    roots = [_divide(stable, 3 * c3), _divide(d0, stable)]
    points = jnp.clip(jnp.stack([jnp.zeros(()), jnp.ones(()), *roots]), 0, 1)
    points = jnp.nan_to_num(points, nan=0.5)
    return points[jnp.argmin(value(points))]


def _divide(numerator, denominator):
    safe = denominator != 0
    return jnp.where(safe, numerator / jnp.where(safe, denominator, 1), 0.0)


def grid(losses: Array, points: Array) -> Array:
    """The grid point of least loss; of equal ones, the nearest to 1/2.

    losses: `[..., T]` at `points` `[T]`.
    """
    best = losses == losses.min(-1, keepdims=True)
    distance = jnp.where(best, jnp.abs(points - 0.5), jnp.inf)
    return points[jnp.argmin(distance, -1)]
