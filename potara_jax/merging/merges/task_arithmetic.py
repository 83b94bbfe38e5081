"""Task arithmetic."""

from __future__ import annotations

from potara_jax.merging import registry
from potara_jax.merging.combining import check_finite, weighted_sum
from potara_jax.merging.interface import ANY, Merge


@registry.merge(
    "task_arithmetic",
    spaces=ANY,
    summary="scaled sum of the task vectors",
    reference="arXiv 2212.04089",
)
def task_arithmetic(*, scale: float = 0.3) -> Merge:
    """The scaled sum of the task vectors, `scale * sum_i n w_i theta_i`.

    Ilharco et al. 2023 (arXiv 2212.04089); their 0.3 was for eight tasks.
    """
    check_finite("scale", scale)
    return Merge("task_arithmetic", weighted_sum, ANY, scale=scale, adds=True)
