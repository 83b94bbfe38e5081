"""Your own text tasks: a Llama pre-trained on some, then one task per client.

    potara run text --data a.jsonl.gz b.csv

One file per task, as JSON or a table, of texts and labels, questions and choices, or
instructions and outputs; `--fields` gives unusual names. A small Llama with byte-pair
tokens is pre-trained on a part of the first files, or `--checkpoint` names a Hugging
Face folder. Clients have one task each, in turn; no example is seen twice.

Pre-training learns only the answers, not the texts. This and the learning rate were
chosen on a part of the base's examples of five sentence tasks.
"""

from functools import partial

import potara_jax as pj
from potara_jax.experiment.problem import ClientContents, Problem, Resources
from potara_jax.experiment.problems import bases, text_files, texts


def make_problem(experiment: pj.Experiment, resources: Resources) -> Problem:
    """A Llama and its federations."""
    upstream, tasks = text_files.read(experiment, resources)
    federate = partial(text_files.dealt, experiment)
    contents = ClientContents("task", experiment.source.names)
    return texts.problem(experiment, upstream, tasks, federate, contents, resources)


EXPERIMENT = pj.Experiment(
    name="text",
    make_problem=make_problem,
    summary="your own text tasks, one per client",
    source=text_files.TextFiles(),
    cells=pj.Cells(heterogeneity=("tasks",)),
    lora=pj.Lora(targets=("q_proj", "v_proj")),
    merging=pj.Merging(curvature="sampled"),
    pretraining=pj.Pretraining(steps=0, batch_size=32, learning_rate=2e-3),
    presets={
        "study": {"cells.heterogeneity": ("tasks", "shards2", "0.5", "1")},
        "simulate": {"participation.cohort": "0.25"},
    },
    resolve=text_files.resolve,
    files=bases.user_files,
)
