"""Potara's closed form, from curvature."""

from __future__ import annotations

from potara_jax.merging import registry
from potara_jax.merging.client_curvature import check_curvature_space, client_curvature
from potara_jax.merging.closed_form import potara_weight
from potara_jax.merging.damping import Damping, relative
from potara_jax.merging.interface import Client, Estimator, Measured
from potara_jax.merging.likelihoods import Likelihood

_DAMPING = relative(0.3)


@registry.weight(
    "potara",
    needs="likelihood",
    samples="train",
    passes=registry.fisher_passes,
    summary="least posterior variance, closed form",
    reference="arXiv 2602.18658",
)
def potara(
    likelihood: Likelihood,
    damping: Damping = _DAMPING,
    *,
    space: str = "core",
    per: str = "client",
    factorisation: str = "diagonal",
    chunk: int = 10,
) -> Estimator:
    """Potara's closed form: the weight of least posterior variance.

    Zou et al. 2026 (arXiv 2602.18658).

    Args:
      likelihood: which Fisher (`exact`, `empirical`, `sampled`, `empirical_of_loss`).
      damping: from Fisher to posterior variance; default `relative(0.3)`.
      space: where curvature is measured: `core` (gauge-invariant), `factor`, `knots` or
        `aligned`.
      per: one weight a `client`, `module` or `parameter`.
      factorisation: `diagonal` or `kronecker`.
      chunk: samples differentiated together, to bound memory.

    Raises:
      ValueError: a space without curvature, or weights of parameters with a
        Kronecker-factored Fisher.
    """
    check_curvature_space(space)
    if factorisation == "kronecker" and per == "parameter":
        raise ValueError("a Kronecker-factored Fisher has no weight per parameter")

    def measure(client: Client) -> Measured:
        curvature = client_curvature(
            likelihood, client, space=space, factorisation=factorisation, chunk=chunk
        )
        weight = potara_weight(curvature, damping, client.trained_on, per=per)
        return Measured(weight, curvature)

    return Estimator("potara", measure)
