"""GLUE: RoBERTa-base with LoRA, three clients with one task's classes.

    potara run glue                                (or: make glue)
    potara run glue --tasks mnli --out runs/glue-mnli
    potara run glue --tasks sst2 qnli qqp mnli rte mrpc cola --cells.clients 7 \\
        --cells.heterogeneity tasks
    potara compare glue --algorithms fedit ffa fedsa rolora

The federation is that of FFA-LoRA (arXiv 2403.12313) and FedSA-LoRA (arXiv 2410.01463):
one task at a time, its training examples dealt to three clients by Dirichlet 0.5, rank
8 on query and value; `--tasks` chooses it among SST-2 (the default), QNLI, QQP, MNLI,
RTE, MRPC and CoLA. Several tasks are dealt together; to run all in turn, run the second
command for each. The classifier is trained whole, sent, and merged with the adapter.

The labels of GLUE's tests are not public, so its validation is the test (MNLI: the
matched one), on which every client's classes are weighted to its proportions. Scores
are accuracies, of CoLA too, for which GLUE takes Matthews's correlation.

The papers' figures are in their tables, and are not of this model: the code of
FedSA-LoRA names RoBERTa-large, 1000 rounds of ten steps on 128 examples by SGD, and a
classifier of each client's own. Rounds, steps and rates here are this project's, by
AdamW, and were not searched.

The weights (0.5 GB) come from Hugging Face's hub, and the data sets from
tensorflow-datasets; training needs an accelerator.
"""

import potara_jax as pj
from potara_jax.experiment.methods import QUICK
from potara_jax.experiment.problem import Problem, Resources
from potara_jax.experiment.problems import bases, glue, sentences


def make_problem(experiment: pj.Experiment, resources: Resources) -> Problem:
    """The RoBERTa and its federations; only tests use what GLUE calls validation."""
    tasks = glue.read(experiment, resources)
    return sentences.problem(experiment, tasks, resources)


EXPERIMENT = pj.Experiment(
    name="glue",
    make_problem=make_problem,
    summary="RoBERTa-base on tasks of GLUE, three clients",
    source=glue.Glue(),
    cells=pj.Cells(heterogeneity=("0.5",), clients=3),
    lora=pj.Lora(rank=8, alpha=16.0, whole=("pooler", "head")),
    training=pj.Training(steps=10, batch_size=32, learning_rate=5e-4),
    federated=pj.Federated(rounds=200),
    local=pj.Local(rounds=100),
    merging=pj.Merging(curvature="empirical", methods=QUICK),
    compute=pj.Compute(precision="bfloat16"),
    presets={
        "study": {"cells.heterogeneity": ("0.1", "0.5", "1")},
        "simulate": {"cells.clients": 100, "participation.cohort": "10"},
    },
    files=bases.user_files,
)
