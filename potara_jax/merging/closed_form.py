"""Potara's closed form: how much of the federated model each client takes.

From posterior variances (see `damping`) to their traces, to the weight that minimises
the merged model's variance (Zou et al. 2026, arXiv 2602.18658). A weight multiplies the
federated adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Array
from potara_jax.merging.curvature import Curvature
from potara_jax.merging.damping import Damping

Tree = Any
_CLAMP = 1 - 1e-6
_ROUNDING = 1e-6  # of a trace, relative


class Traces(NamedTuple):
    """Traces of the posterior covariances: federated, local, and across the two."""

    federated: Array
    local: Array
    cross: Array


def potara_weight(
    curvature: Curvature, damping: Damping, examples: Array, *, per: str = "client"
) -> Any:
    """Potara's weight of one client: a scalar, `{path: w}`, or one a coordinate.

    Args:
      curvature: of the client's two models.
      damping: from the curvature to posterior variances.
      examples: the client's number of training examples, the `N` of `laplace`.
      per: one weight a `client`, `module` or `parameter`.

    Raises:
      ValueError: `per` is none of these.
    """
    traces = variance_traces(curvature, damping, examples, per=per)
    return jax.tree.map(best_weight, traces, is_leaf=_is_traces)


def bias_aware_weight(curvature: Curvature, damping: Damping, examples: Array) -> Array:
    """Potara's weight of one client, with the distance of the models as a bias.

    The closed form takes both models to be centred on one optimum, so that they lie
    `E|F - L|^2 = a + b - 2c` apart. Any further distance is the federated model's bias
    for this client, `beta^2 = max(0, |F - L|^2 - (a + b - 2c))`; with `a + beta^2` for
    `a` the weight of least mean squared error is

        w = (b - c) / max(a + b - 2c, |F - L|^2)

    as in James and Stein (1961). It needs variances in the units of the coordinates:
    `laplace` or `evidence`, not a relative damping.

    Args:
      curvature: of the client's two models.
      damping: from the curvature to posterior variances.
      examples: the client's number of training examples, the `N` of `laplace`.
    """
    traces = variance_traces(curvature, damping, examples)
    spread = traces.federated + traces.local - 2 * traces.cross
    bias = jnp.maximum(0.0, curvature.distance - spread)
    return best_weight(traces._replace(federated=traces.federated + bias))


def sensitivity(
    curvature: Curvature,
    damping: Callable[[float], Damping],
    value: float,
    examples: Array,
) -> Array:
    """How far one client's weight moves within one decade of the damping, either way.

    Above 0.1 a client's weight is not identified: it is a choice of the damping, not an
    estimate.

    Args:
      curvature: of the client's two models.
      damping: makes a damping from a value.
      value: the middle of the decades.
      examples: the client's number of training examples, the `N` of `laplace`.
    """

    def weight_at(damping_value: float) -> Array:
        return potara_weight(curvature, damping(damping_value), examples)

    middle = weight_at(value)
    ends = jnp.stack([weight_at(value / 10), weight_at(value * 10)])
    return jnp.abs(ends - middle).max(0)


# --- The weight of given traces ------------------------------------------------------


def best_weight(traces: Traces) -> Array:
    """The weight that minimises the merged variance, elementwise.

        g(w) = w^2 a + (1-w)^2 b + 2 w (1-w) c      a, b, c: federated, local, cross
        w*   = (b - c) / (a + b - 2c)

    `c` is clamped to the paper's assumption `c <= min(a, b)`, so `w*` is in [0, 1] with
    no clipping; where the two models are one (`a = b = c`), or a trace is not a number,
    it is 1/2. Scaling all three by one constant changes nothing. Traces `a` and `b`
    that differ by rounding alone are equal.

    Examples:
      >>> traces = Traces(jnp.float32(1.0), jnp.float32(3.0), jnp.float32(0.0))
      >>> round(float(best_weight(traces)), 5)  # three times as certain, three quarters
      0.75
    """
    a, b, c = traces
    b = jnp.where(jnp.abs(a - b) <= _ROUNDING * a, a, b)
    c = jnp.minimum(c, _CLAMP * jnp.minimum(a, b))
    log_odds = jnp.log(b - c) - jnp.log(a - c)
    return jax.nn.sigmoid(jnp.where(jnp.isnan(log_odds), 0.0, log_odds))


# --- Traces --------------------------------------------------------------------------


def variance_traces(
    curvature: Curvature, damping: Damping, examples: Array, *, per: str = "client"
) -> Any:
    """`tr S_F`, `tr S_L`, `tr S_FL` of one client, `S_FL = rho sqrt(S_F S_L)`.

    Args:
      curvature: of the client's two models.
      damping: from the curvature to posterior variances.
      examples: the client's number of training examples, the `N` of `laplace`.
      per: `client` (one `Traces`), `module` (one a module path) or `parameter` (one a
        coordinate).

    Raises:
      ValueError: `per` is none of these.
    """
    if per not in ("client", "module", "parameter"):
        raise ValueError(f"one weight per '{per}': use client, module or parameter")
    variances = damping(curvature, examples)
    d_f, d_l = jax.tree.map(lambda s: _kept(jnp.sqrt(s)), variances)
    if curvature.used is not None:
        d_f, d_l = (_where_used(curvature.used, d) for d in (d_f, d_l))
    if per == "parameter":
        return jax.tree.map(_traces, d_f, d_l, curvature.correlation)
    if per == "module":
        return {m: _total(d_f[m], d_l[m], curvature.correlation[m]) for m in d_f}
    return _total(d_f, d_l, curvature.correlation)


def _where_used(used: Tree, deviations: Tree) -> Tree:
    """Posterior standard deviations, zero where a coordinate stands for nothing."""
    return jax.tree.map(lambda u, x: jnp.where(u, x, 0), used, deviations)


def _total(d_f: Tree, d_l: Tree, rho: Tree) -> Traces:
    """The traces over all arrays."""
    summed = jax.tree.map(_summed, d_f, d_l, rho)
    leaves = jax.tree.leaves(summed, is_leaf=_is_traces)
    totals: list[Any] = [sum(each) for each in zip(*leaves, strict=True)]
    return Traces(*totals)


def _summed(d_f: Array, d_l: Array, rho: Array) -> Traces:
    return Traces(*(x.sum() for x in _traces(d_f, d_l, rho)))


def _traces(d_f: Array, d_l: Array, rho: Array) -> Traces:
    """From posterior standard deviations, whose products do not overflow."""
    return Traces(d_f * d_f, d_l * d_l, rho * d_f * d_l)


def _is_traces(x: Any) -> bool:
    return isinstance(x, Traces)


def _kept(x: Array) -> Array:
    """`x`, computed once: on a CPU every reduction would compute it anew."""
    return jax.lax.platform_dependent(
        x, cpu=jax.lax.optimization_barrier, default=lambda same: same
    )
