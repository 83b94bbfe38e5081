"""Task arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potara_jax.adapters.lora import Array
from potara_jax.merging import registry
from potara_jax.merging.combining import check_finite, weighted_sum
from potara_jax.merging.interface import ANY, Merge, Place


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

    def combine(values: Sequence[Array], weights: Sequence[Any], place: Place) -> Array:
        del place
        return scale * len(values) * weighted_sum(values, weights)

    return Merge("task_arithmetic", combine, ANY)
