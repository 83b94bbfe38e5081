"""Your own images: a ViT pre-trained on some classes, federated on the others.

    potara run images --data a.npz b.npz
    potara run images --data FOLDER               one sub-folder per class

Files hold `images` and `labels`, or `x` and `y`, and optionally `names`; a folder may
have `train` and `test` with the classes in each. A ViT of a
suitable size is pre-trained on a share of the classes, or `--checkpoint` names a
Hugging Face folder. Clients hold the other classes, and train a head for them: with
their own shares of the classes or, with heterogeneity `tasks`, with all classes and a
transformation of their images each.
"""

import potara_jax as pj
from potara_jax.data.images import read, without_duplicates
from potara_jax.data.transforms import TRANSFORMS
from potara_jax.experiment.methods import QUICK
from potara_jax.experiment.problem import Problem, Resources
from potara_jax.experiment.problems import bases, image_models, images, vision


def make_problem(experiment: pj.Experiment, resources: Resources) -> Problem:
    """A ViT and its federations."""
    source, seed = experiment.source, bases.settings_of(experiment).seed
    loaded = read(source.data, side=source.side, log=resources.log)
    everything = without_duplicates(loaded, resources.log)
    share = 0.0 if source.checkpoint else source.upstream
    upstream, mine = images.split_classes(everything, share, seed=seed)
    test, testing = source.test_examples, mine.testing
    cells = images.dealt(experiment, mine, test=test, testing=testing)
    model = image_models.chosen(experiment, upstream, mine, resources)
    return vision.problem(experiment, model, cells, transformations=TRANSFORMS)


EXPERIMENT = pj.Experiment(
    name="images",
    make_problem=make_problem,
    summary="your own images, with classes dealt to clients",
    source=images.ImageFiles(),
    cells=pj.Cells(heterogeneity=("0.1", "tasks")),
    lora=pj.Lora(whole=("head",)),
    merging=pj.Merging(curvature="empirical", methods=QUICK),
    pretraining=pj.Pretraining(steps=0),
    presets={
        "study": {"cells.heterogeneity": ("0.05", "0.1", "0.3", "0.5", "1")},
        "simulate": {
            "cells.heterogeneity": ("0.1",),
            "cells.clients": 100,
            "participation.cohort": "10",
        },
    },
    resolve=images.resolve,
    files=bases.user_files,
)
