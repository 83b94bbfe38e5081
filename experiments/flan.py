"""Eight tasks of FLAN: Llama-3.2-3B, one task per client.

    potara run flan                      (or: make flan)

ARC-Challenge, CosmosQA, definite pronouns, QQP, HellaSwag, MNLI, SQuAD and SST-2; 900
examples each for training, 100 held out and 500 for the test; 50 federated and 300
local rounds, against 600 federated ones. The paper (arXiv 2602.18658) reports 70.61 for
closed-book question answering, and 68.07 for FedALT.

It does not publish rank, learning rate, local steps, batch size or prompts: those are
this project's, as in `commonsense`. Accuracy on SQuAD counts exact answers. The weights
(6.4 GB in bfloat16) need an account on Hugging Face's hub; training needs a device of
40 GB and takes some hours on it.
"""

from functools import partial

from potara_jax.data import prompts
from potara_jax.experiment.problems import suites
from potara_jax.experiments import commonsense  # pyrefly: ignore  # this folder

EXPERIMENT = commonsense.EXPERIMENT.replace(
    name="flan",
    make_problem=partial(suites.problem, prompts.FLAN),
    summary="Llama-3.2-3B on eight tasks of FLAN, as in the paper",
)
