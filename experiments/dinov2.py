"""CIFAR-100 on two cores: DINOv2-S, with adapters in its last layers.

    potara run dinov2                                     (or: make dinov2)
    potara run dinov2 --checkpoint FOLDER --data FILE.npz ...

Images are enlarged to 70 x 70 only, the first ten of the twelve layers are used, and
the last two of these are adapted. What the eight layers before them compute is kept, in
0.8 GB for two hundred images a class. Every client trains a head, which is sent and
merged with its adapter.

`potara compare` and `potara study` have eight clients, the first twenty classes and
half the rounds.

With heterogeneity `tasks`, each group of clients transforms its images in its own way,
and has all classes equally often: nothing there is label shift.

The setting is this project's own, and was not searched. With weights that were tuned
further for saliency, expect at Dirichlet 0.1 some 52 % of a merge, 39 of the local and
21 of the federated models; at 0.5, 36, 16 and 26; with `tasks` 18, 3 and 19.
"""

import potara_jax as pj
from potara_jax.experiment.methods import QUICK
from potara_jax.experiment.problems import images
from potara_jax.experiments import cifar100  # pyrefly: ignore  # this folder

# What compares many algorithms or weights: two hours on two cores.
SMALLER = {
    "cells.heterogeneity": ("0.1", "0.5"),
    "cells.clients": 8,
    "source.classes": 20,
    "federated.rounds": 20,
    "local.rounds": 10,
}
EXPERIMENT = cifar100.EXPERIMENT.replace(
    name="dinov2",
    summary="DINOv2-S on CIFAR-100, small enough for two cores",
    source=images.PublicImages(
        "facebook/dinov2-small",
        image_size=70,
        layers=10,
        class_examples=200,
        test_examples=60,
    ),
    cells=pj.Cells(heterogeneity=("0.1", "0.5", "tasks")),
    lora=pj.Lora(last_layers=2, whole=("head",)),
    training=pj.Training(learning_rate=2.5e-3),
    federated=pj.Federated(rounds=40),
    local=pj.Local(rounds=20),
    merging=pj.Merging(samples=20, curvature="empirical", methods=QUICK),
    compute=pj.Compute(),
    presets={
        "compare": SMALLER | {"cells.seeds": (0,)},
        "study": SMALLER,
        "simulate": {"participation.cohort": "0.25"},
    },
)
