"""Problems whose clients are given by the data: one file or folder each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from potara_jax.data import images, leaf, records, text
from potara_jax.data.federation import Batch
from potara_jax.data.text import Example
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import (
    ClientContents,
    Federations,
    Problem,
    Resources,
)
from potara_jax.experiment.problems import (
    federations,
    image_models,
    text_files,
    texts,
    vision,
)
from potara_jax.experiment.problems import images as image_problems
from potara_jax.experiment.problems.client_folder import Client, Clients

_FEWEST = 10  # examples of a client


def of_texts(experiment: Experiment, clients: Clients, resources: Resources) -> Problem:
    """A problem of a Llama, for clients with texts.

    Args:
      experiment: with its settings.
      clients: with the clients' files.
      resources: what making the problem may use.

    Raises:
      ValueError: a client has too few examples.
    """
    everyone = [*clients.upstream, *clients.federated]
    groups = read_texts(everyone, texts.fields_of(experiment.source), resources.log)
    number = len(clients.upstream)
    upstream = [example for group in groups[:number] for example in group]
    groups = groups[number:]
    for client, examples in zip(clients.federated, groups, strict=True):
        _check_number(client, len(examples))
    known, *others = np.split(
        text_files.identities([upstream, *groups]), np.cumsum([len(upstream)])
    )
    new = _not_among(known, np.concatenate(others), resources.log)
    return texts.problem(
        experiment,
        [upstream[place] for place in new],
        groups,
        partial(_federate_texts, experiment, resources.log),
        _contents(clients, groups),
        resources,
    )


def _not_among(
    upstream: np.ndarray, others: np.ndarray, log: Callable[[str], None]
) -> np.ndarray:
    """The places of the base's examples of which no client has a copy."""
    new = np.flatnonzero(~np.isin(upstream, others))
    if len(upstream) and not len(new):
        raise ValueError(
            "all examples for the base are copies of clients' examples: set "
            "source.upstream or source.checkpoint otherwise"
        )
    if copies := len(upstream) - len(new):
        log(f"the base leaves out {copies} examples, as clients have copies of them")
    return new


def read_texts(
    clients: Sequence[Client], fields: Mapping[str, str], log: Callable[[str], None]
) -> list[list[Example]]:
    """The examples of every client; those with labels share them.

    Args:
      clients: where their examples are.
      fields: names of the files' fields, by what they mean.
      log: receives lines for the user.

    Raises:
      ValueError: a file cannot be used; the message names it.
    """
    parts = [
        (number, part)
        for number, client in enumerate(clients)
        for part in _parts(client, fields, log)
    ]
    groups: list[list[Example]] = [[] for _ in clients]
    joined = text.together([part for _, part in parts])
    for (number, _), examples in zip(parts, joined, strict=True):
        groups[number] += examples
    return groups


def _parts(
    client: Client, fields: Mapping[str, str], log: Callable[[str], None]
) -> list[tuple[bool, list[Example]]]:
    """The files of a client: whether their examples have labels, and the examples."""
    if client.column is not None:
        return [_of_user(client, fields)]
    if client.user is not None:
        pair = leaf.texts(leaf.users(client.path)[client.user])
        return [(True, text.of_labels(client.path, *pair))]
    paths = records.files_in(client.path)
    return [text.read_one(path, fields=fields, log=log) for path in paths]


def _of_user(client: Client, fields: Mapping[str, str]) -> tuple[bool, list[Example]]:
    """A user's part of a file of records, which a column names."""
    column = client.column or ""
    known = frozenset({*text.known_names(fields), column.lower()})
    rows = _rows(client.path, client.path.stat().st_mtime_ns, known)
    mine = [row for row in rows if str(row[1].get(column)) == client.user]
    return text.of_records(client.path, mine, fields=fields)


@functools.lru_cache(maxsize=2)
def _rows(path: Path, changed: int, known: frozenset[str]) -> records.Records:
    """The records of a file, which is read again once it has changed."""
    return records.read(path, known)[0]


def _contents(clients: Clients, groups: Sequence[Sequence[Example]]) -> ClientContents:
    """What clients hold: labels where all examples have the same, or their texts."""
    names = tuple(client.name for client in clients.federated)
    options = _common_options(groups)
    return ClientContents("label" if options else "text", options or ("texts",), names)


def _common_options(groups: Sequence[Sequence[Example]]) -> tuple[str, ...]:
    """The options of all examples; empty if they differ, or there is no choice."""
    known = {example.options for group in groups for example in group}
    (options,) = known if len(known) == 1 else ((),)
    return options if len(options) > 1 else ()


def _federate_texts(
    experiment: Experiment,
    log: Callable[[str], None],
    pool: Batch,
    groups: Sequence[Sequence[Example]],
) -> Federations:
    """Federations of clients with texts, in the proportions of their labels."""
    examples = [example for group in groups for example in group]
    labelled = bool(_common_options(groups))
    return federations.natural(
        experiment,
        pool,
        texts.strata_of(groups),
        np.array([example.gold if labelled else 0 for example in examples]),
        test=experiment.source.test_examples,
        same=_guarded(text_files.identities(groups), log),
    )


def _guarded(same: np.ndarray, log: Callable[[str], None]) -> np.ndarray:
    """The numbers of copies, with a line for the user if there are any."""
    if copies := len(same) - len(np.unique(same)):
        log(
            f"{copies} examples are copies of others: clients train on no copy of what "
            "any client is tested on"
        )
    return same


def of_images(
    experiment: Experiment, clients: Clients, resources: Resources
) -> Problem:
    """A problem of a ViT, for clients with images.

    Args:
      experiment: with its settings.
      clients: with the clients' folders.
      resources: what making the problem may use.

    Raises:
      ValueError: a client has too few images, or all have one class.
    """
    source = experiment.source
    everyone = [*clients.upstream, *clients.federated]
    parts = [_read_images(client, source.side, resources.log) for client in everyone]
    joined = images.join(parts, [client.path for client in everyone])
    for client, part in zip(everyone, parts, strict=True):
        _check_number(client, len(part.labels))
    if len(joined.names) < 2:
        raise ValueError(f"all clients have only the class '{joined.names[0]}'")
    numbers = np.arange(len(everyone)) - len(clients.upstream)
    owner = np.repeat(numbers, [len(part.labels) for part in parts])
    upstream, mine = joined.select(owner < 0), joined.select(owner >= 0)
    same = images.identities(joined.images)
    new = _not_among(same[owner < 0], same[owner >= 0], resources.log)
    cells = federations.natural(
        experiment,
        image_problems.batch(mine),
        owner[owner >= 0],
        mine.labels,
        test=source.test_examples,
        same=_guarded(same[owner >= 0], resources.log),
    )
    model = image_models.chosen(experiment, upstream.select(new), mine, resources)
    made = vision.problem(experiment, model, cells)
    names = tuple(client.name for client in clients.federated)
    return made._replace(contents=made.contents._replace(clients=names))


def _read_images(
    client: Client, side: int | None, log: Callable[[str], None]
) -> images.Images:
    """A client's images, all of which are split into parts here."""
    if client.user is None:
        read = images.read([client.path], side=side, log=log)
        return read._replace(testing=None)
    user = leaf.users(client.path)[client.user]
    return images.of_arrays(
        client.path, leaf.pixels(user), np.asarray(user.labels), side=side
    )


def _check_number(client: Client, number: int) -> None:
    if number < _FEWEST:
        raise ValueError(
            f"client {client.name} in {client.path} has {number} examples: fewer than "
            f"{_FEWEST}"
        )
