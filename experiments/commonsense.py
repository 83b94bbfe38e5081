"""The commonsense suite: Llama-3.2-3B, eight tasks, one per client.

    potara run commonsense               (or: make commonsense)

BoolQ, PIQA, SIQA, HellaSwag, WinoGrande, ARC-Easy, ARC-Challenge and OpenBookQA; 900
examples each for training, 100 held out and 500 for the test; 50 federated and 300
local rounds, against 600 federated ones. The paper (arXiv 2602.18658) reports a mean
accuracy of 74.18 %, and 71.48 % for FedALT.

It does not publish rank, learning rate, local steps, batch size or prompts: those are
this project's. The weights (6.4 GB in bfloat16) need an account on Hugging Face's hub;
training needs a device of 40 GB and takes some hours on it.
"""

from functools import partial

import potara_jax as pj
from potara_jax.data import prompts
from potara_jax.experiment.problems import bases, suites

EXPERIMENT = pj.Experiment(
    name="commonsense",
    make_problem=partial(suites.problem, prompts.COMMONSENSE),
    summary="Llama-3.2-3B on eight commonsense tasks, as in the paper",
    source=suites.Suite(),
    cells=pj.Cells(seeds=(0,), heterogeneity=("tasks",), clients=8),
    lora=pj.Lora(rank=16, alpha=32.0, targets=("q_proj", "v_proj")),
    training=pj.Training(learning_rate=3e-4),
    federated=pj.Federated(rounds=50, longer_rounds=600),
    local=pj.Local(rounds=300),
    merging=pj.Merging(
        curvature="sampled",
        methods=("uniform", "potara core, per module", "fisher", "grid"),
    ),
    compute=pj.Compute(precision="bfloat16", remat=True),
    presets={
        "study": {"cells.heterogeneity": ("tasks", "shards2")},
        "simulate": {"cells.clients": 80, "participation.cohort": "8"},
    },
    files=bases.user_files,
)
