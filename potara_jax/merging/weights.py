"""Potara's closed form: how much of the federated model each client takes.

From Fisher information to posterior variances, to their traces, to the weight that
minimises the merged model's variance (Zou et al. 2026, arXiv 2602.18658). A weight
multiplies the federated adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from potara_jax.adapters.lora import Array
from potara_jax.merging.curvature import Curvature, mean_of

Tree = Any
Damping = Callable[[Curvature, Array], tuple[Tree, Tree]]
_CLAMP = 1 - 1e-6


class Traces(NamedTuple):
    """Traces of the posterior covariances: federated, local, and across the two."""

    federated: Array
    local: Array
    cross: Array


# --- Damping: from Fisher information to posterior variance --------------------------


def laplace(tau: float) -> Damping:
    """Laplace posterior variance `1 / (N F + tau)`: `tau` is the prior precision."""

    def variances(curvature, examples):
        return _inverted(curvature, lambda f: examples * f + tau)

    return variances


def evidence(scale: float = 1.0) -> Damping:
    """`laplace` with `scale` times the prior precision of most marginal likelihood.

    One `tau` for both models, with `theta` their coordinates and `d` their number:

        log p(D) ~ d/2 log tau - 1/2 sum log(N F + tau) - tau/2 |theta|^2 + const

    It is the root of `sum N F / (N F + tau) = tau |theta|^2` (MacKay 1992), whose left
    falls and whose right rises with `tau`: found by bisection.
    """

    def variances(curvature, examples):
        tau = scale * evidence_precision(curvature, examples)
        return _inverted(curvature, lambda f: examples * f + tau)

    return variances


def evidence_precision(curvature: Curvature, examples: Array) -> Array:
    """The prior precision `tau` of most marginal likelihood; see `evidence`."""
    fishers = jax.tree.leaves([curvature.federated, curvature.local])

    def too_small(log_tau):
        tau = jnp.exp(log_tau)
        known = sum((examples * f / (examples * f + tau)).sum() for f in fishers)
        return known > tau * curvature.square

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        small = too_small(middle)
        return jnp.where(small, middle, low), jnp.where(small, high, middle)

    low, high = jax.lax.fori_loop(0, 50, halve, (jnp.float32(-40), jnp.float32(40)))
    return jnp.exp((low + high) / 2)


def relative(epsilon: float) -> Damping:
    """`1 / (F + d)` with one `d = epsilon * mean(F)` over both models.

    A damping of each model's own would leave the traces as far apart as the means are.
    """

    def variances(curvature, examples):
        del examples
        floor = jnp.where(curvature.mean > 0, epsilon * curvature.mean, 1.0)
        return _inverted(curvature, lambda f: f + floor)

    return variances


def quantile(q: float) -> Damping:
    """`1 / max(F, d)` with `d` the `q`-quantile of both models' positive entries."""

    def variances(curvature, examples):
        del examples
        leaves = jax.tree.leaves([curvature.federated, curvature.local])
        both = jnp.concatenate([x.ravel() for x in leaves])
        floor = jnp.nanquantile(jnp.where(both > 0, both, jnp.nan), q)
        floor = jnp.where(jnp.isnan(floor), 1.0, floor)
        return _inverted(curvature, lambda f: jnp.maximum(f, floor))

    return variances


def harmonic(epsilon: float) -> Damping:
    """The harmonic bound on a module's trace, `n^2 / sum F`, with relative damping.

    By Jensen it is below `sum 1/F`, and finite unless the module's whole `F` is zero.
    """

    def variances(curvature, examples):
        averaged = [
            {path: _flat(module) for path, module in tree.items()}
            for tree in (curvature.federated, curvature.local)
        ]
        flat = curvature._replace(federated=averaged[0], local=averaged[1])
        return relative(epsilon)(flat, examples)

    return variances


DAMPINGS: dict[str, Callable[[float], Damping]] = {
    "laplace": laplace,
    "evidence": evidence,
    "relative": relative,
    "quantile": quantile,
    "harmonic": harmonic,
}


def _inverted(curvature, precision) -> tuple[Tree, Tree]:
    of = lambda tree: jax.tree.map(lambda f: 1 / precision(f), tree)
    return of(curvature.federated), of(curvature.local)


def _flat(module) -> Tree:
    mean = mean_of(module)
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
    if per not in ("client", "module", "parameter"):
        raise ValueError(f"one weight per '{per}': use client, module or parameter")
    variances = damping(curvature, examples)
    d_f, d_l = jax.tree.map(lambda s: _kept(jnp.sqrt(s)), variances)
    if per == "parameter":
        return jax.tree.map(_traces, d_f, d_l, curvature.correlation)
    total = lambda *trees: _sum(_leaves(jax.tree.map(_summed, *trees)))
    if per == "module":
        return {m: total(d_f[m], d_l[m], curvature.correlation[m]) for m in d_f}
    return total(d_f, d_l, curvature.correlation)


def _traces(d_f, d_l, rho) -> Traces:
    """From posterior standard deviations, whose products do not overflow."""
    return Traces(d_f * d_f, d_l * d_l, rho * d_f * d_l)


def _summed(d_f, d_l, rho) -> Traces:
    return Traces(*(x.sum() for x in _traces(d_f, d_l, rho)))


def _leaves(tree) -> list[Traces]:
    return jax.tree.leaves(tree, is_leaf=_is_traces)


def _is_traces(x) -> bool:
    return isinstance(x, Traces)


def _sum(traces: list[Traces]) -> Traces:
    return Traces(*map(sum, zip(*traces, strict=True)))


def _kept(x) -> Array:
    """`x`, computed once: on a CPU every reduction would compute it anew."""
    keep, same = jax.lax.optimization_barrier, lambda x: x
    return jax.lax.platform_dependent(x, cpu=keep, default=same)


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


def bias_aware_weight(curvature: Curvature, damping: Damping, examples: Array) -> Array:
    """Potara's weight of one client, with the models' distance for what it is.

    The closed form takes both models to be centred on one optimum, so that they lie
    `E|F - L|^2 = a + b - 2c` apart. What they lie apart beyond that is the federated
    model's bias for this client, `beta^2 = max(0, |F - L|^2 - (a + b - 2c))`; with
    `a + beta^2` for `a` the weight of least mean squared error is

        w = (b - c) / max(a + b - 2c, |F - L|^2)

    as in James and Stein (1961). It needs variances in the units of the coordinates:
    `laplace` or `evidence`, not a relative damping.
    """
    traces = variance_traces(curvature, damping, examples)
    spread = traces.federated + traces.local - 2 * traces.cross
    bias = jnp.maximum(0.0, curvature.distance - spread)
    return closed_form(traces._replace(federated=traces.federated + bias))


def potara_weight(
    curvature: Curvature, damping: Damping, examples: Array, *, per: str = "client"
) -> Any:
    """Potara's weight of one client: a scalar, `{path: w}`, or one a coordinate."""
    traces = variance_traces(curvature, damping, examples, per=per)
    return jax.tree.map(closed_form, traces, is_leaf=_is_traces)


def sensitivity(
    curvature: Curvature,
    damping: Callable[[float], Damping],
    value: float,
    examples: Array,
) -> Array:
    """How far one client's weight moves within one decade of the damping, either way.

    A client for which this is above 0.1 has no identified weight: it is a choice of the
    damping, not an estimate.
    """
    at = lambda v: potara_weight(curvature, damping(v), examples)
    middle, ends = at(value), jnp.stack([at(value / 10), at(value * 10)])
    return jnp.abs(ends - middle).max(0)
