"""Problems whose clients are given by the data: one file or folder each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from potara_jax.data import images, text
from potara_jax.data.federation import Batch
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import (
    ClientContents,
    Federations,
    Problem,
    Resources,
)
from potara_jax.experiment.problems import federations, image_models, texts, vision
from potara_jax.experiment.problems import images as image_problems
from potara_jax.experiment.problems.client_folder import ClientPaths

_FEWEST = 10  # examples of a client


def of_texts(
    experiment: Experiment, paths: ClientPaths, resources: Resources
) -> Problem:
    """A problem of a Llama, for clients with texts.

    Raises `ValueError` if a client has too few examples.
    """
    files = text.read_together([*paths.upstream, *paths.federated])
    number = len(paths.upstream)
    upstream = [example for examples in files[:number] for example in examples]
    for path, examples in zip(paths.federated, files[number:], strict=True):
        _check_number(path, len(examples))
    names = tuple(path.name for path in paths.federated)

    def federate(pool: Batch, owner: np.ndarray) -> Federations:
        test = experiment.source.test_examples
        return federations.natural(experiment, pool, owner, owner, test=test)

    return texts.problem(
        experiment,
        upstream,
        files[number:],
        federate,
        ClientContents("client", names, names),
        resources,
    )


def of_images(
    experiment: Experiment, paths: ClientPaths, resources: Resources
) -> Problem:
    """A problem of a ViT, for clients with images.

    Raises `ValueError` if a client has too few images, or all have one class.
    """
    source = experiment.source
    everyone = [*paths.upstream, *paths.federated]
    parts = [images.read([path], side=source.side) for path in everyone]
    joined = images.join(parts, everyone)
    for path, part in zip(everyone, parts, strict=True):
        _check_number(path, len(part.labels))
    if len(joined.names) < 2:
        raise ValueError(f"all clients have only the class '{joined.names[0]}'")
    numbers = np.arange(len(everyone)) - len(paths.upstream)
    owner = np.repeat(numbers, [len(part.labels) for part in parts])
    upstream, mine = joined.select(owner < 0), joined.select(owner >= 0)
    cells = federations.natural(
        experiment,
        image_problems.batch(mine),
        owner[owner >= 0],
        mine.labels,
        test=source.test_examples,
    )
    model = image_models.chosen(experiment, upstream, mine, resources)
    made = vision.problem(experiment, model, cells)
    names = tuple(path.name for path in paths.federated)
    return made._replace(contents=made.contents._replace(clients=names))


def _check_number(path: Path, number: int) -> None:
    if number < _FEWEST:
        raise ValueError(f"client {path} has {number} examples: fewer than {_FEWEST}")
