"""The weighted sum."""

from __future__ import annotations

from potara_jax.merging import registry
from potara_jax.merging.combining import AVERAGE
from potara_jax.merging.interface import ANY, Merge


@registry.merge(
    "linear",
    spaces=ANY,
    summary="weighted mean; uniform soup at equal weights",
    reference="arXiv 2203.05482",
)
def linear() -> Merge:
    """The weighted sum `sum_i w_i theta_i`; uniform model soup at equal weights.

    Exact in `delta`, `core` and `knots`, where it is one function. In `factor`,
    `exact - factor = w (1 - w) (a_F - a_L) (b_F - b_L)` for two adapters.
    Wortsman et al. 2022 (arXiv 2203.05482).
    """
    return AVERAGE
