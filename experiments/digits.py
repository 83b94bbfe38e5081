"""Ten clients on the handwritten digits of scikit-learn.

    potara run digits                     (or: make digits)

A small Vision Transformer is pre-trained on upstream images rotated by 90, 180 and 270
degrees, which no client ever sees. Clients hold upright images of a few classes each.
With heterogeneity `tasks`, each group of clients transforms its images in its own way,
and has all classes equally often: nothing there is label shift. Three seeds of that and
of Dirichlet 0.1 take three to five minutes on two cores. To compare algorithms or
weights, and to search step sizes, there are twenty clients.

The setting is this project's own: learning rate, rank and rounds were chosen on the
held-out samples of one seed that is not among the defaults (100), both for the
federated and for the local models. Expect the merges to beat both their parents.
"""

import json
from pathlib import Path

import potara_jax as pj
from potara_jax.data.digits import load
from potara_jax.data.transforms import TRANSFORMS
from potara_jax.experiment.problem import Problem, Resources
from potara_jax.experiment.problems import bases, digits, vision


def make_problem(experiment: pj.Experiment, resources: Resources) -> Problem:
    """The digits ViT and its federations."""
    images = load(bases.settings_of(experiment).seed)
    cells = digits.dealt(experiment, images)
    model = digits.model(experiment, images, resources)
    return vision.problem(experiment, model, cells, transformations=TRANSFORMS)


DIRICHLET = "0.1", "0.5"
EXPERIMENT = pj.Experiment(
    name="digits",
    make_problem=make_problem,
    summary="a small ViT on handwritten digits",
    source=digits.HandwrittenDigits(),
    cells=pj.Cells(heterogeneity=("0.1", "tasks"), clients=10),
    pretraining=pj.Pretraining(steps=400),
    presets={
        "compare": {
            "cells.heterogeneity": DIRICHLET,
            "cells.clients": 20,
            "federated.rounds": 30,
            "local.rounds": 15,
        },
        "tune": {"cells.heterogeneity": DIRICHLET, "cells.clients": 20},
        "study": {
            "cells.heterogeneity": ("0.05", "0.1", "0.3", "0.5", "1", "tasks"),
            "cells.clients": 20,
        },
        "simulate": {
            "cells.heterogeneity": ("0.1",),
            "cells.clients": 10_000,
            "participation.cohort": "200",
            "source.examples": 40,
            "federated.rounds": 50,
        },
    },
    tuned=json.loads(Path(__file__).with_name("tuned.json").read_text("utf-8")),
)
