"""Scores of clients' models, and what a table says about them."""

from potara_jax.evaluation.metrics import (
    Scores,
    adapter_parameters,
    common_evaluator,
    equal_shares,
    evaluator,
    worst_decile,
)

__all__ = [
    "Scores",
    "adapter_parameters",
    "common_evaluator",
    "equal_shares",
    "evaluator",
    "worst_decile",
]
