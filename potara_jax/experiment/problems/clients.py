"""Problems whose clients are as the data have them: a file or folder each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

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
from potara_jax.experiment.problems import bases, federations, texts, vision
from potara_jax.experiment.problems import images as image_problems
from potara_jax.experiment.problems.texts import TextModel

_TEXT = (".jsonl", ".jsonl.gz", ".json")
_FEWEST = 10  # examples of a client


class ClientModel(TextModel, Protocol):
    """Settings of a problem of natural clients."""

    @property
    def side(self) -> int | None: ...
    @property
    def test_examples(self) -> int: ...


class ClientPaths(NamedTuple):
    """The clients whose examples the base learns, and those who federate."""

    upstream: list[Path]
    federated: list[Path]


def find(data: Sequence[Path]) -> list[Path]:
    """The clients of a folder, in the order of their names.

    Raises `ValueError` where there is not one folder with two clients or more, all with
    texts or all with images.
    """
    if len(data) != 1 or not data[0].is_dir():
        names = " ".join(map(str, data)) or "empty"
        expected = "one folder, with a file or folder per client"
        raise ValueError(f"source.data is {names}: it must be {expected}")
    paths = sorted(path for path in data[0].iterdir() if _is_client(path))
    if len(paths) < 2:
        raise ValueError(
            f"{data[0]} holds {len(paths)} clients: there must be 2 or more"
        )
    kinds = {is_text(path): path.name for path in paths}
    if len(kinds) > 1:
        raise ValueError(
            f"{data[0]} holds texts ({kinds[True]}) and images ({kinds[False]}): all "
            "clients must be of one kind"
        )
    return paths


def _is_client(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return path.is_dir() or path.suffix == ".npz" or is_text(path)


def is_text(path: Path) -> bool:
    """Whether a client's examples are texts; otherwise they are images."""
    return path.name.endswith(_TEXT)


def upstream_number(clients: int, share: float) -> int:
    """The clients that the base is pre-trained on: of a share above 0, at least one."""
    return min(max(1, round(share * clients)), clients - 1) if share else 0


def divide(
    paths: Sequence[Path], *, upstream: int, clients: int, seed: int
) -> ClientPaths:
    """Draw the clients for the base; of the others, the first by name federate."""
    order = np.random.default_rng([seed, 0]).permutation(len(paths))
    federated = np.sort(order[upstream:])[:clients]
    return ClientPaths(
        [paths[i] for i in order[:upstream]], [paths[i] for i in federated]
    )


def of_texts(
    experiment: Experiment,
    source: ClientModel,
    paths: ClientPaths,
    resources: Resources,
) -> Problem:
    """A problem of a Llama, for clients with texts.

    Raises `ValueError` where a client has too few examples.
    """
    files = text.read_together([*paths.upstream, *paths.federated])
    number = len(paths.upstream)
    upstream = [example for examples in files[:number] for example in examples]
    for path, examples in zip(paths.federated, files[number:], strict=True):
        _check_number(path, len(examples))
    names = tuple(path.name for path in paths.federated)

    def federate(pool: Batch, owner: np.ndarray) -> Federations:
        return federations.natural(
            experiment, pool, owner, owner, test=source.test_examples
        )

    return texts.problem(
        experiment,
        source,
        upstream,
        files[number:],
        federate,
        ClientContents("client", names, names),
        resources,
    )


def of_images(
    experiment: Experiment,
    source: ClientModel,
    paths: ClientPaths,
    resources: Resources,
) -> Problem:
    """A problem of a ViT, for clients with images.

    Raises `ValueError` where a client has too few images, or all have one class.
    """
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
    if source.checkpoint:
        model = image_problems.loaded(source.checkpoint, mine)
    else:
        model = image_problems.pretrained(
            upstream,
            mine,
            bases.settings_of(experiment),
            resources,
            width=source.width,
            depth=source.depth,
        )
    problem = vision.problem(experiment, model, cells)
    names = tuple(path.name for path in paths.federated)
    return problem._replace(contents=problem.contents._replace(clients=names))


def _check_number(path: Path, number: int) -> None:
    if number < _FEWEST:
        raise ValueError(f"client {path} has {number} examples: fewer than {_FEWEST}")
