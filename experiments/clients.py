"""Your own clients: a folder with one sub-folder or file per client.

    potara run clients --data FOLDER

A client is an .npz file of images, a folder of images with one sub-folder per class, a
file of text examples (.jsonl, .csv and the like) or a folder of those; or FOLDER is a
file of LEAF or of texts with a column of users, who are the clients. A model is
pre-trained on the examples of some clients, which then take no part, or `--checkpoint`
names a model.

Settings that are `auto` or 0 take a value that suits the kind of data: a ViT whose
queries, values and head are trained, or a Llama whose queries and values are adapted.
"""

import potara_jax as pj
from potara_jax.experiment.problem import Problem, Resources
from potara_jax.experiment.problems import bases, client_folder, clients
from potara_jax.experiment.settings import AUTO, NATURAL


def make_problem(experiment: pj.Experiment, resources: Resources) -> Problem:
    """A model, and the federation of the clients."""
    divided = client_folder.divide(experiment)
    if divided.upstream:
        names = ", ".join(client.name for client in divided.upstream)
        resources.log(f"the base is pre-trained on {names}; all others are clients")
    of_texts = divided.federated[0].of_texts
    make = clients.of_texts if of_texts else clients.of_images
    return make(experiment, divided, resources)


EXPERIMENT = pj.Experiment(
    name="clients",
    make_problem=make_problem,
    summary="your own clients, with images or texts",
    source=client_folder.ClientFolder(),
    cells=pj.Cells(heterogeneity=(NATURAL,), clients=0),
    lora=pj.Lora(targets=(AUTO,), whole=(AUTO,)),
    merging=pj.Merging(curvature=AUTO),
    pretraining=pj.Pretraining(steps=0, batch_size=0, learning_rate=0.0),
    presets={"simulate": {"participation.cohort": "0.25"}},
    natural=True,
    resolve=client_folder.resolve,
    files=bases.user_files,
)
