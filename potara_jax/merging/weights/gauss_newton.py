"""Newton steps over one weight a module."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Array
from potara_jax.merging import registry
from potara_jax.merging.combining import merge, pair
from potara_jax.merging.interface import Client, Estimator, Measured
from potara_jax.merging.likelihoods import Logits
from potara_jax.merging.registry import Work
from potara_jax.merging.segment import halves

_STEPS = 3


def _passes(work: Work) -> float:
    """A step: the logits, twice, and a Jacobian-vector product a module."""
    return _STEPS * (2 + work.modules) / 3


@registry.weight(
    "gauss_newton",
    needs="logits",
    labels="one",
    samples="heldout",
    passes=_passes,
    costly=True,
    summary="Newton steps over a weight a module, drawn to 1/2",
    reference="this project",
)
def gauss_newton(
    logits: Logits, *, per: str = "module", steps: int = _STEPS, ridge: float = 0.1
) -> Estimator:
    """Newton steps of the samples' cross-entropy over the weights, drawn to 1/2.

    With the logits `z(w)`, `J = dz/dw` (`M` Jacobian-vector products, `M` adapted
    modules) and `H` the Hessian of cross-entropy in the logits, each step solves

        (E[J^T H J] + ridge) d = -E[J^T (p - y)] - ridge (w - 1/2)

    and keeps `w + d` in [0, 1].

    Args:
      logits: `(base, adapter, examples) -> [N, K]`, of examples `(inputs, labels)`.
      per: one weight a `module` or `client`.
      steps: Newton steps.
      ridge: how strongly weights are drawn to 1/2, in units of the loss.
    """

    def measure(client: Client) -> Measured:
        start, unravel = ravel_pytree(halves(client, per))
        share = client.weight / jnp.maximum(client.weight.sum(), 1e-30)

        def outputs(flat: Array) -> Array:
            merged = merge((client.federated, client.local), pair(unravel(flat)))
            return logits(client.base, merged, client.examples)

        def step(flat: Array, _: None) -> tuple[Array, None]:
            slope, hessian = newton(outputs, flat, client.examples[1], share)
            hessian += ridge * jnp.eye(flat.size)
            slope += ridge * (flat - 0.5)
            change = algebra.solve(hessian, slope[:, None])[:, 0]
            return jnp.clip(flat - change, 0, 1), None

        flat, _ = jax.lax.scan(step, start, length=steps)
        return Measured(unravel(flat))

    return Estimator("gauss_newton", measure)


def newton(
    outputs: Callable[[Array], Array], flat: Array, labels: Array, share: Array
) -> tuple[Array, Array]:
    """Slope `[M]` and Gauss-Newton Hessian `[M, M]` of the mean cross-entropy.

    Args:
      outputs: from weights `[M]` to logits `[N, K]`.
      flat: the weights, `[M]`.
      labels: `[N]`.
      share: of each sample in the mean, `[N]`.
    """
    z = outputs(flat)
    jacobian = jax.jacfwd(outputs)(flat)
    p = jax.nn.softmax(z)
    wrong = p - jax.nn.one_hot(labels, z.shape[-1])
    centred = jacobian - (p[..., None] * jacobian).sum(-2, keepdims=True)
    p, wrong, jacobian, centred = (
        _real(share, x) for x in (p, wrong, jacobian, centred)
    )
    slope = jnp.einsum("n,nk,nkm->m", share, wrong, jacobian)
    hessian = jnp.einsum("n,nk,nkm,nkl->ml", share, p, centred, centred)
    return slope, hessian


def _real(share: Array, x: Array) -> Array:
    """`x` `[N, ...]`, zero where a sample is padded."""
    kept = (share > 0).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(kept, x, 0)
