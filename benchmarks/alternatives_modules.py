"""A trial of one weight a module, drawn to the client's default weight.

A client's few samples say little about each of its modules' weights. How much they are
drawn to the default weight, a federation's marginal likelihood says. See "One weight a
module" in `docs/method.md`. Letters: `C` clients, `M` modules.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.alternatives_cases import NUMBERS, Rows, Trained, merged
from potara_jax import merging
from potara_jax.merging import Client
from potara_jax.merging.curves import TEMPERATURES, Curves, best_temperature
from potara_jax.merging.weights.gauss_newton import newton

DEVIATIONS = 0.0, 0.02, 0.05, 0.1, 0.2, 0.4  # of modules' weights, one is chosen
Deviations = tuple[float, float]


def modules(ready: Trained) -> Rows:
    """Whether one weight a module is better, drawn to the client's default weight.

    One or three Gauss-Newton steps of the default's tempered loss, under the prior of
    `offsets`. All are merged and tested, none is read off a curve. See "One weight a
    module".
    """
    free = merging.gauss_newton(ready.at.problem.task.logits).measure
    for number in NUMBERS:
        arguments = ready.arguments(number)
        measured = ready.curves(arguments)
        (one, deviations), _, (three, _) = newton_steps(ready, measured, arguments)
        of_free = ready.program("gauss_newton", free)(*arguments).weight
        same = dict.fromkeys(ready.pair[1], ready.default(measured))
        yield f"{number} default", ready.regret_by_module(same)
        yield f"{number} modules, one step", ready.regret_by_module(one)
        yield f"{number} modules, three steps", ready.regret_by_module(three)
        yield f"{number} gauss_newton", ready.regret_by_module(of_free)
        yield f"{number} deviation of modules", deviations[0]
        yield f"{number} deviation of a client's modules", deviations[1]


def newton_steps(
    ready: Trained, measured: Curves, arguments: tuple[Any, ...]
) -> Iterator[tuple[dict[str, jax.Array], Deviations]]:
    """Three steps' weights by module, with the deviations that were most likely."""
    start = np.asarray(ready.default(measured), np.float64)[:, None]
    divisor = jnp.full(len(start), TEMPERATURES[int(best_temperature(measured))])
    program = ready.program("expansion", expansion(ready.at.problem.task.logits))
    weight, paths = start + np.zeros(len(ready.pair[1])), sorted(ready.pair[1])
    for _ in range(3):
        out = program(*arguments, jnp.asarray(weight, jnp.float32), divisor)
        gradient, hessian = (np.asarray(x, np.float64) for x in out)
        at_start = gradient - np.einsum("cmk,ck->cm", hessian, weight - start)
        offset, deviations = offsets(at_start, hessian)
        weight = np.clip(start + offset, 0, 1)
        columns = jnp.asarray(weight.T, jnp.float32)
        yield dict(zip(paths, columns, strict=True)), deviations


def expansion(logits: Any) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The gradient `[M]` and the Hessian of a client's summed loss at its weights."""

    def one(client: Client, flat: jax.Array, divisor: jax.Array) -> Any:
        def outputs(flat: jax.Array) -> jax.Array:
            weight = dict(zip(sorted(client.local), flat, strict=True))
            adapter = merged(client, weight)
            return logits(client.base, adapter, client.examples) / divisor

        count = client.weight.sum()
        share = client.weight / jnp.maximum(count, 1)
        slope, hessian = newton(outputs, flat, client.examples[1], share)
        return count * slope, count * hessian

    return one


def offsets(
    gradient: np.ndarray,
    hessian: np.ndarray,
    deviations: Sequence[float] = DEVIATIONS,
) -> tuple[np.ndarray, Deviations]:
    """Posterior means of modules' offsets `[C, M]`, under the likeliest normal prior.

    A client's log likelihood is `-(G d + d H d / 2)`. Offsets `d` are the sum of those
    common to all clients, of variance `t^2`, and the client's own, of variance `s^2`;
    `t` and `s` have the highest marginal likelihood.

    Args:
      gradient: `G`, `[C, M]`.
      hessian: `H`, `[C, M, M]`.
      deviations: the values that `t` and `s` may have.
    """

    def evidence(pair: Deviations) -> float:
        own, *rest = integrated(gradient, hessian, pair[1])
        common, *_ = integrated(*(x.sum(0) for x in rest), pair[0])
        return float(own.sum() + common)

    t, s = max(itertools.product(deviations, repeat=2), key=evidence)
    _, *rest = integrated(gradient, hessian, s)
    _, b, _ = integrated(*(x.sum(0) for x in rest), t)
    common = -(t**2) * b
    _, b, _ = integrated(gradient + hessian @ common, hessian, s)
    return common - s**2 * b, (t, s)


def integrated(
    gradient: np.ndarray, hessian: np.ndarray, deviation: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A quadratic log likelihood with normal noise of its argument integrated out.

    Its log value at zero `[...]`, its gradient `[..., M]`, and its Hessian.

    Args:
      gradient: of the negative log likelihood at zero, `[..., M]`.
      hessian: `[..., M, M]`.
      deviation: of the noise.
    """
    variance = deviation**2
    spread = np.eye(hessian.shape[-1]) + variance * hessian
    flat = np.linalg.solve(spread, gradient[..., None])[..., 0]
    value = variance * (gradient * flat).sum(-1) - np.linalg.slogdet(spread)[1]
    return value / 2, flat, np.linalg.solve(spread, hessian)
