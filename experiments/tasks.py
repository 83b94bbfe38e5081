"""Sixteen clients with a generated text task each; some tasks contradict each other.

    potara run tasks                     (or: make tasks)

A byte-level Llama of 1.1 million parameters is pre-trained on short inputs of twelve of
the sixteen tasks. Client `k` has longer inputs of task `k`. Four clients form pairs
that use the same word but expect different answers, which the prompt does not tell
apart; eight have words that the base knows and no other client has; and four have words
that the base never saw. Nothing is downloaded.

The setting is this project's own. The learning rate was chosen on held-out examples of
a seed that is not among the defaults (100); the lengths of inputs and the rounds, with
another base and other examples (`--pretraining.seed 7 --cells.seeds 100`).
"""

import potara_jax as pj
from potara_jax.data.generated import TASKS
from potara_jax.experiment.problem import ClientContents, Problem, Resources
from potara_jax.experiment.problems import generated, language


def make_problem(experiment: pj.Experiment, resources: Resources) -> Problem:
    """The Llama, and its federations."""
    examples = generated.examples(experiment)
    cells = generated.dealt(experiment, examples)
    model = generated.model(experiment, examples, resources)
    contents = ClientContents("task", tuple(TASKS))
    normalise = experiment.source.normalise
    return language.problem(experiment, model, cells, contents, normalise=normalise)


EXPERIMENT = pj.Experiment(
    name="tasks",
    make_problem=make_problem,
    summary="a small Llama on generated text tasks",
    source=generated.GeneratedTasks(),
    cells=pj.Cells(heterogeneity=("tasks",), clients=16),
    lora=pj.Lora(targets=(".*_proj",)),
    training=pj.Training(learning_rate=2.5e-3),
    federated=pj.Federated(rounds=16),
    local=pj.Local(rounds=6),
    # Without the merges that are slow.
    merging=pj.Merging(
        curvature="sampled",
        grid_points=7,
        methods=(
            *("uniform", "potara delta", "potara delta, rank r", "hermite", "grid"),
            *("ties", "slerp"),
        ),
    ),
    pretraining=pj.Pretraining(steps=700, batch_size=32, learning_rate=2e-3),
    presets={
        "study": {"cells.heterogeneity": ("tasks", "shards2", "0.5", "1")},
        "simulate": {"participation.cohort": "4"},
    },
)
