"""Federated algorithms, their rounds, and the conditions of a federation.

`registry.algorithms()` lists all algorithms.
"""

from __future__ import annotations

from potara_jax.federated.accounting import account
from potara_jax.federated.aggregation import weighted_mean
from potara_jax.federated.cohort_round import Report
from potara_jax.federated.conditions import Conditions
from potara_jax.federated.interface import Algorithm, Shared, Update
from potara_jax.federated.privacy import Privacy
from potara_jax.federated.progress import (
    Progress,
    model_rank,
    personalised,
    stack,
    start,
)
from potara_jax.federated.registry import algorithm
from potara_jax.federated.rounds import Round, Step, iterate, make_round, progress_of
from potara_jax.federated.streaming import HostProgress, start_on_host
from potara_jax.federated.wire import Wire, bfloat16, int8, top_k

__all__ = [
    "Algorithm",
    "Conditions",
    "HostProgress",
    "Privacy",
    "Progress",
    "Report",
    "Round",
    "Shared",
    "Step",
    "Update",
    "Wire",
    "account",
    "algorithm",
    "bfloat16",
    "int8",
    "iterate",
    "make_round",
    "model_rank",
    "personalised",
    "progress_of",
    "stack",
    "start",
    "start_on_host",
    "top_k",
    "weighted_mean",
]
