"""CIFAR-100: ViT-B/16 from ImageNet-21k, twenty clients.

    potara run cifar100                  (or: make cifar100)
    potara run cifar100 --checkpoint facebook/dinov2-small --image-size 224
    potara run cifar100 --data FILE.npz ...             your copy of the images

Dirichlet 0.1 and 0.5 over the hundred classes, as in the paper, and `tasks`, where each
group of clients transforms its images in its own way and all have all classes; 400
federated and 300 local rounds, against 600 federated ones. The paper (arXiv
2602.18658) reports 62.39 % for its first client of twenty.

It does not publish rank, learning rate, local steps or batch size: those are this
project's. Images are 32 x 32 and are enlarged to the model's 224 on the device. The
weights (346 MB) come from Hugging Face's hub; training needs a device of 24 GB. It
takes 6e17 floating-point operations (4 per parameter and patch): two hours at 100
TFLOP/s. `dinov2` is a setting for two cores.
"""

import potara_jax as pj
from potara_jax.data.transforms import TRANSFORMS
from potara_jax.experiment.methods import QUICK
from potara_jax.experiment.problem import Problem, Resources
from potara_jax.experiment.problems import bases, image_models, images, vision


def make_problem(experiment: pj.Experiment, resources: Resources) -> Problem:
    """The ViT and its federations; the official test images are used only for tests."""
    source = experiment.source
    everything = images.public("cifar100", source, resources.log)
    test, testing = source.test_examples, everything.testing
    cells = images.dealt(experiment, everything, test=test, testing=testing)
    model = image_models.loaded(
        source.checkpoint,
        everything,
        image_size=source.image_size,
        layers=source.layers,
    )
    return vision.problem(experiment, model, cells, transformations=TRANSFORMS)


EXPERIMENT = pj.Experiment(
    name="cifar100",
    make_problem=make_problem,
    summary="ViT-B/16 on CIFAR-100, as in the paper",
    source=images.PublicImages("google/vit-base-patch16-224-in21k"),
    cells=pj.Cells(heterogeneity=("0.1", "0.5", "tasks")),
    lora=pj.Lora(rank=16, alpha=32.0, whole=("head",)),
    training=pj.Training(learning_rate=1e-3),
    federated=pj.Federated(rounds=400, longer_rounds=600),
    local=pj.Local(rounds=300),
    merging=pj.Merging(curvature="empirical", methods=QUICK),
    compute=pj.Compute(precision="bfloat16"),
    presets={
        "study": {"cells.heterogeneity": ("0.05", "0.1", "0.3", "0.5", "1")},
        "simulate": {
            "cells.heterogeneity": ("0.1",),
            "cells.clients": 500,
            "participation.cohort": "20",
        },
    },
    files=bases.user_files,
)
