"""The commonsense suite: Llama-3.2-3B, eight tasks, one a client.

    potara run commonsense               (or: make commonsense)

BoolQ, PIQA, SIQA, HellaSwag, WinoGrande, ARC-Easy, ARC-Challenge and OpenBookQA; 900
examples each for training, 100 held out and 500 for the test; 50 federated and 300
local rounds, against 600 federated ones. The paper (arXiv 2602.18658) reports a mean
accuracy of 74.18 %, and of 71.48 % for FedALT.

It does not publish rank, learning rate, local steps and batch size, nor its prompts:
those are this project's. The weights (6.4 GB in bfloat16) need an account on Hugging
Face's hub; training wants a device of 40 GB and takes some hours there.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

from potara_jax.experiments import suites
from potara_jax.experiments.suites import Suite

from potara_jax.data import catalogue


@dataclasses.dataclass(frozen=True)
class Commonsense(Suite):
    """Federated and local LoRA on Llama-3.2-3B for commonsense, merged by Potara."""

    out: Path = Path("runs/commonsense")
    """Run folder. A finished run is shown again, an unfinished one is continued."""


problem = partial(suites.problem, catalogue.COMMONSENSE)
