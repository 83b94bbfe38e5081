"""Merge weights from a client's few samples, all behind one interface.

An `Estimator` looks at one client's federated and local model on its samples, and says
how much of each to take. What needs the other clients too (a pooled weight, a prior) is
decided after every client has measured.

Letters: `C` clients, `N` samples, `M` adapted modules, `K` classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Adapter, Array, Params
from potara_jax.merging import segment
from potara_jax.merging.curvature import Curvature, curvature
from potara_jax.merging.kronecker import kronecker
from potara_jax.merging.likelihoods import Example, Likelihood
from potara_jax.merging.merges import merge, pair
from potara_jax.merging.spaces import SPACES
from potara_jax.merging.weights import Damping, potara_weight

Loss = Callable[[Params, Adapter, Example], Array]
Tree = Any
_FACTORISATIONS = {"diagonal": curvature, "kronecker": kronecker}


class Client(NamedTuple):
    """One client's two models and its samples.

    `examples`: leaves `[N, ...]`; `weight` `[N]`: of every sample, zero for a padded
    one. `trained_on`: the number of training examples. `key`: consumed.
    """

    base: Params
    federated: Adapter
    local: Adapter
    examples: Example
    weight: Array
    trained_on: Array
    key: Array


class Measured(NamedTuple):
    """What a client measures: a `weight` of the federated adapter, and what it is from.

    The weight is a scalar, one a module, or one a coordinate; or, for methods whose
    weights do not sum to one, a tuple: of the federated and of the local adapter.
    """

    weight: Tree
    curvature: Curvature | None = None


class Estimator(NamedTuple):
    """How to weigh: `measure(client)`, then `decide(measured [C], counts [C])`.

    `decide` gives all clients' `Measured` from what they measured and their numbers of
    samples; None: what they measured is the result.
    """

    name: str
    measure: Callable[[Client], Any]
    decide: Callable[[Any, Array], Measured] | None = None


def constant(weight: float = 0.5) -> Estimator:
    """One given weight; no sample is looked at."""
    measure = lambda client: Measured(jnp.full_like(client.weight[0], weight))
    return Estimator("constant", measure)


# --- Curvature -----------------------------------------------------------------------


def potara(
    likelihood: Likelihood,
    damping: Damping,
    *,
    space: str = "core",
    per: str = "client",
    factorisation: str = "diagonal",
    chunk: int = 10,
) -> Estimator:
    """Potara's closed form: the weight of least posterior variance.

    likelihood: which Fisher (`exact`, `empirical`, `sampled`).
    damping: from Fisher to posterior variance (`relative`, `laplace`, ...).
    space: where curvature is measured: `core` (gauge-invariant), `factor`, `knots`.
    per: `client`, `module` or `parameter`: how many weights a client has.
    factorisation: `diagonal` or `kronecker`.
    chunk: samples differentiated together, to bound memory.

    Zou et al. 2026 (arXiv 2602.18658).
    """
    check_curvature_space(space)
    if factorisation == "kronecker" and per == "parameter":
        raise ValueError("a Kronecker-factored Fisher has no weight per parameter")

    def measure(client: Client) -> Measured:
        found = _measure(
            likelihood, client, space, _FACTORISATIONS[factorisation], chunk
        )
        weight = potara_weight(found, damping, client.trained_on, per=per)
        return Measured(weight, found)

    return Estimator("potara", measure)


def check_curvature_space(space: str) -> None:
    """Raise `ValueError` for a space in which gradients are not taken."""
    fit = ("core", "factor", "knots", "aligned")
    if space not in fit:
        raise ValueError(f"no curvature in space '{space}': choose from {list(fit)}")


def _measure(likelihood, client, space, how, chunk) -> Curvature:
    coordinates = SPACES[space].coordinates((client.federated, client.local))
    at = lambda theta, example, key: likelihood(
        client.base, coordinates.assemble(theta), example, key
    )
    return how(
        at,
        *coordinates.thetas,
        client.examples,
        client.weight,
        client.key,
        chunk=chunk,
    )


def fisher(
    likelihood: Likelihood,
    *,
    space: str = "core",
    floor: float = 1e-6,
    normalise: bool = True,
    chunk: int = 10,
) -> Estimator:
    """Diagonal Fisher merging: every parameter's weight is its share of information.

        w = (F_F + floor) / (F_F + F_L + 2 floor)

    normalise: divide each model's Fisher by its norm first, so that the sharper model
      does not take everything; the floor is then relative. Merge in the same `space`.
    Matena and Raffel 2022 (arXiv 2111.09832).
    """
    check_curvature_space(space)

    def measure(client: Client) -> Measured:
        found = _measure(likelihood, client, space, curvature, chunk)
        return Measured(fisher_weight(found, floor=floor, normalise=normalise), found)

    return Estimator("fisher", measure)


def fisher_weight(
    curvature: Curvature, *, floor: float = 1e-6, normalise: bool = True
) -> Tree:
    """Weights of diagonal Fisher merging, one a coordinate; see `fisher`."""
    unit = _unit if normalise else lambda tree: tree
    share = lambda f, own: (f + floor) / (f + own + 2 * floor)
    return jax.tree.map(share, unit(curvature.federated), unit(curvature.local))


def _unit(tree) -> Tree:
    length = optax.tree.norm(tree)
    return jax.tree.map(lambda x: x / jnp.where(length > 0, length, 1), tree)


# --- The loss along the segment ------------------------------------------------------


def segment_loss(loss: Loss, client: Client, space: str = "delta") -> Callable:
    """A client's mean loss on its samples, as a function of the merge weight.

    loss: `(base, adapter, examples) -> [N]`. The weight is in any form that a
    `Measured` has.
    """

    def at(weight):
        weights = weight if isinstance(weight, tuple) else pair(weight)
        merged = merge((client.federated, client.local), weights, space=space)
        losses = loss(client.base, merged, client.examples)
        total = jnp.where(client.weight > 0, client.weight * losses, 0).sum()
        return total / jnp.maximum(client.weight.sum(), 1e-30)

    return at


def hermite(loss: Loss) -> Estimator:
    """The minimum of the cubic through both ends of the segment; two passes."""
    measure = lambda c: Measured(segment.minimise(_cubic(loss)(c)))
    return Estimator("hermite", measure)


def hermite_pooled(loss: Loss) -> Estimator:
    """The minimum of the mean of all clients' cubics: one weight for all."""
    decide = lambda cubics, n: Measured(segment.pooled(cubics, n))
    return Estimator("hermite_pooled", _cubic(loss), decide)


def hermite_bayes(loss: Loss) -> Estimator:
    """The posterior mean weight, under a prior from all clients' cubics."""
    decide = lambda cubics, n: Measured(segment.empirical_bayes(cubics, n))
    return Estimator("hermite_bayes", _cubic(loss), decide)


def _cubic(loss) -> Callable[[Client], segment.Cubic]:
    return lambda client: segment.hermite(segment_loss(loss, client))


def grid(loss: Loss, *, points: int = 21) -> Estimator:
    """The best of `points` equally spaced weights on the samples."""
    return Estimator("grid", lambda c: Measured(_best(loss, c, points)))


def grid_pooled(loss: Loss, *, points: int = 21) -> Estimator:
    """The best of `points` weights for all clients on all their samples."""
    at = jnp.linspace(0, 1, points)

    def decide(losses, counts):
        losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
        there = (counts > 0) & jnp.isfinite(losses).any(-1)
        share = (counts / counts.sum())[:, None]
        mean = jnp.where(there[:, None], share * losses, 0).sum(0)
        return Measured(jnp.full(counts.shape, segment.grid(mean, at)))

    measure = lambda client: jax.lax.map(segment_loss(loss, client), at)
    return Estimator("grid_pooled", measure, decide)


def soup(loss: Loss) -> Estimator:
    """Greedy soup: the better model, or the mean of both if that is better still.

    Wortsman et al. 2022 (arXiv 2203.05482).
    """
    return Estimator("soup", lambda c: Measured(_best(loss, c, 3)))


def _best(loss, client, points) -> Array:
    at = jnp.linspace(0, 1, points)
    return segment.grid(jax.lax.map(segment_loss(loss, client), at), at)


def learned(
    loss: Loss, *, per: str = "client", steps: int = 100, learning_rate: float = 1e-2
) -> Estimator:
    """Weights by gradient descent (Adam, from 1/2) on the samples, kept in [0, 1].

    per: `client` or `module`. The weights that had the least loss are returned.
    """
    optimizer = optax.adam(learning_rate)

    def measure(client: Client) -> Measured:
        at = segment_loss(loss, client)
        start = _halves(client, per)

        def step(carry, _):
            weight, state, best, least = carry
            value, slope = jax.value_and_grad(at)(weight)
            better = value < least
            best = jax.tree.map(
                lambda new, old: jnp.where(better, new, old), weight, best
            )
            updates, state = optimizer.update(slope, state)
            weight = jax.tree.map(
                lambda x: jnp.clip(x, 0, 1), optax.apply_updates(weight, updates)
            )
            return (weight, state, best, jnp.minimum(value, least)), None

        carry = start, optimizer.init(start), start, jnp.inf
        (_, _, best, _), _ = jax.lax.scan(step, carry, length=steps)
        return Measured(best)

    return Estimator("learned", measure)


def _halves(client: Client, per: str) -> Tree:
    """The weights that every search starts from."""
    if per not in ("client", "module"):
        raise ValueError(f"one weight per '{per}': use client or module")
    half = jnp.full_like(client.weight[0], 0.5)
    return half if per == "client" else dict.fromkeys(client.local, half)


def gauss_newton(
    logits: Callable[[Params, Adapter, Example], Array],
    *,
    per: str = "module",
    steps: int = 3,
    ridge: float = 0.1,
) -> Estimator:
    """Newton steps of the samples' cross-entropy over the weights, drawn to 1/2.

    With the logits `z(w)`, `J = dz/dw` (`M` Jacobian-vector products) and `H` the
    Hessian of cross-entropy in the logits, each step solves

        (E[J^T H J] + ridge) d = -E[J^T (p - y)] - ridge (w - 1/2)

    and keeps `w + d` in [0, 1]. logits: `(base, adapter, examples) -> [N, K]`, of
    examples `(inputs, labels)`. ridge: in units of the loss.
    """

    def measure(client: Client) -> Measured:
        start, unravel = jax.flatten_util.ravel_pytree(_halves(client, per))
        share = client.weight / jnp.maximum(client.weight.sum(), 1e-30)

        def outputs(flat):
            merged = merge((client.federated, client.local), pair(unravel(flat)))
            return logits(client.base, merged, client.examples)

        def step(flat, _):
            slope, hessian = _newton(outputs, flat, client.examples[1], share)
            hessian += ridge * jnp.eye(flat.size)
            slope += ridge * (flat - 0.5)
            return jnp.clip(
                flat - algebra.solve(hessian, slope[:, None])[:, 0], 0, 1
            ), None

        flat, _ = jax.lax.scan(step, start, length=steps)
        return Measured(unravel(flat))

    return Estimator("gauss_newton", measure)


def _newton(outputs, flat, labels, share) -> tuple[Array, Array]:
    """Slope `[M]` and Gauss-Newton Hessian `[M, M]` of the mean cross-entropy."""
    z = outputs(flat)
    jacobian = jax.jacfwd(outputs)(flat)
    p = jax.nn.softmax(z)
    wrong = p - jax.nn.one_hot(labels, z.shape[-1])
    centred = jacobian - (p[..., None] * jacobian).sum(-2, keepdims=True)
    keep = lambda x: jnp.where(_along(share > 0, x), x, 0)
    slope = jnp.einsum("n,nk,nkm->m", share, keep(wrong), keep(jacobian))
    hessian = jnp.einsum(
        "n,nk,nkm,nkl->ml", share, keep(p), keep(centred), keep(centred)
    )
    return slope, hessian


def _along(vector, x) -> Array:
    return vector.reshape(-1, *[1] * (x.ndim - 1))


def lorahub(
    loss: Loss,
    *,
    evaluations: int = 40,
    bound: float = 1.5,
    penalty: float = 0.05,
) -> Estimator:
    """A free weight for each adapter's factors, by an evolution strategy on the loss.

    From zero, within `+-bound`, with `penalty` times the mean size of the weights on
    the loss; the weights multiply the factors, so merge in `factor` space. Huang et al.
    2023 (arXiv 2307.13269), with a (1 + 1) evolution strategy (one-fifth rule) in place
    of their NGOpt.
    """

    def measure(client: Client) -> Measured:
        at = segment_loss(loss, client, "factor")
        cost = lambda w: at((w[0], w[1])) + penalty * jnp.abs(w).mean()

        def step(carry, key):
            best, least, width = carry
            trial = best + width * jax.random.normal(key, (2,))
            trial = jnp.clip(trial, -bound, bound)
            found = cost(trial)
            better = found < least
            width = width * jnp.where(better, 1.5, 1.5**-0.25)
            best = jnp.where(better, trial, best)
            return (best, jnp.minimum(found, least), width), None

        start = jnp.zeros(2)
        keys = jax.random.split(client.key, evaluations - 1)
        carry, _ = jax.lax.scan(step, (start, cost(start), 0.5), keys)
        return Measured((carry[0][0], carry[0][1]))

    return Estimator("lorahub", measure)


# --- How sure a weight is ------------------------------------------------------------


def bootstrap(estimator: Estimator, *, replicates: int = 200, level: float = 0.9):
    """A function from a client to the bootstrap interval `(low, high)` of its weight.

    Samples are drawn with replacement; whatever does not depend on how often a sample
    is drawn, gradients and losses among it, is computed once. Efron 1979.
    """
    if estimator.decide is not None:
        raise ValueError(f"'{estimator.name}' weighs clients together: no interval")

    def interval(client: Client) -> tuple[Tree, Tree]:
        draw_key, key = jax.random.split(client.key)
        counts = _resampled(draw_key, client.weight, replicates)
        again = lambda weight: (
            estimator.measure(client._replace(weight=weight, key=key)).weight
        )
        weights = jax.vmap(again)(counts)
        tail = (1 - level) / 2
        at = lambda q: jax.tree.map(lambda w: jnp.quantile(w, q, axis=0), weights)
        return at(tail), at(1 - tail)

    return interval


def _resampled(key, weight, replicates) -> Array:
    """How often each sample is drawn, `[replicates, N]`: as many as there are."""
    size, real = weight.shape[0], weight > 0
    count, first = real.sum(), jnp.argsort(~real)  # a stable sort: the real ones first
    uniform = jax.random.uniform(key, (replicates, size))
    place = jnp.minimum((uniform * count).astype(int), count - 1)
    drawn = (jnp.arange(size) < count).astype(jnp.float32)
    tally = lambda index: jnp.zeros(size).at[index].add(drawn)
    return jax.vmap(tally)(first[place])
