"""GLUE: RoBERTa-base with LoRA, three clients with one task's classes.

    potara run glue                                (or: make glue)
    potara run glue --tasks mnli --out runs/glue-mnli
    potara run glue --tasks sst2 qnli qqp mnli rte mrpc cola --cells.clients 7 \\
        --cells.heterogeneity tasks
    potara compare glue --algorithms ffa fedsa rolora

The federation is that of FedSA-LoRA's code (arXiv 2410.01463), which compares itself
with FFA-LoRA (arXiv 2403.12313): the training examples of one task at a time, dealt to
three clients by Dirichlet 0.5, and rank 8 on query and value. `--tasks` names SST-2
(the default), QNLI, QQP, MNLI, RTE, MRPC or CoLA; the second command, for each of them,
runs all. The classes of several tasks are dealt together, or one task to a client, as
in the third. The classifier is trained whole, sent, and merged with the adapter.

The labels of GLUE's tests are not public, so its validation is the test (MNLI: the
matched one), in which a client's classes weigh as much as among its training examples.
Scores are accuracies, of CoLA too, for which GLUE takes Matthews's correlation.

The papers' figures are in their tables. FedSA-LoRA's are not of this model: its code
names RoBERTa-large, 1000 rounds of ten steps on 128 examples by SGD, the whole
validation for every client, and a classifier that is not sent. Rounds, steps and rates
are this project's, by AdamW, and were not searched.

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
