"""Clients in a folder or in LEAF's files, and the settings that suit them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from potara_jax.data import leaf, records
from potara_jax.data.images import visible
from potara_jax.experiment.checks import require_at_least, require_that
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problems import bases, images, scale, texts
from potara_jax.experiment.settings import AUTO


@dataclasses.dataclass(frozen=True)
class ClientFolder:
    """The user's clients, and the model that they adapt."""

    data: tuple[Path, ...] = ()
    """The folder that holds a sub-folder or file per client; or a file of LEAF; or one
    of texts with a column such as `client` or `user`."""
    fields: tuple[str, ...] = ()
    """Names of the fields of texts where they are not the usual ones, such as
    text=abstract label=field. Default: the usual names."""
    checkpoint: str | None = None
    """Folder, or name on Hugging Face's hub, of a ViT, a DINOv2, a Llama or a Qwen.
    Default: a model is pre-trained."""
    image_size: int | None = None
    """Side of the images that the checkpoint reads, in pixels. Default: as its
    preprocessor crops them, or those that it was trained on."""
    layers: int | None = None
    """Use the first layers of a checkpoint for images only. Default: all."""
    upstream: float = 0.3
    """Share of the clients that the base is pre-trained on; they do not federate."""
    side: int | None = None
    """Resize images to this many pixels per side. Default: as they are."""
    context: int | None = None
    """Maximum of tokens per example; a longer one loses the start of its prompt.
    Default: what 19 of 20 examples and every answer need, at most 128."""
    test_examples: int = 200
    """Maximum of test examples per client."""
    vocabulary: int = 2048
    """Tokens of the tokenizer that is trained."""
    width: int | None = None
    """Width of the model that is pre-trained. Default: what suits data and device."""
    depth: int | None = None
    """Its layers. Default: what suits data and device."""
    normalise: bool = False
    """Choose options by their log-likelihood per token, not in total."""

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for an invalid value."""
        texts.check(self)
        images.check_side(self)
        images.check_reading(self)
        _check_common(self)


@dataclasses.dataclass(frozen=True)
class ClientImages:
    """The settings of a `ClientFolder` that matter to images."""

    data: tuple[Path, ...]
    checkpoint: str | None
    image_size: int | None
    layers: int | None
    upstream: float
    side: int | None
    test_examples: int
    width: int | None
    depth: int | None

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for an invalid value."""
        bases.check_sizes(self)
        images.check_side(self)
        images.check_reading(self)
        _check_common(self)


@dataclasses.dataclass(frozen=True)
class ClientTexts:
    """The settings of a `ClientFolder` that matter to texts."""

    data: tuple[Path, ...]
    fields: tuple[str, ...]
    checkpoint: str | None
    upstream: float
    context: int | None
    test_examples: int
    vocabulary: int
    width: int | None
    depth: int | None
    normalise: bool

    def check(self, experiment: Experiment) -> None:
        """Raise `ValueError` for an invalid value."""
        texts.check(self)
        _check_common(self)


Source = ClientFolder | ClientImages | ClientTexts


def _check_common(source: Source) -> None:
    require_at_least(source, "source", 8, "test_examples")
    bases.check_upstream(source)


def num_upstream(source: Source, clients: int) -> int:
    """How many clients the base is pre-trained on: at least one, if any."""
    if source.checkpoint or not 0 < source.upstream < 1:
        return 0
    return min(max(1, round(source.upstream * clients)), clients - 1)


def narrowed(source: Source, *, of_texts: bool) -> ClientTexts | ClientImages:
    """The settings that matter to clients with texts, or to clients with images.

    Args:
      source: the user's settings.
      of_texts: whether the clients have texts; otherwise they have images.

    Raises:
      ValueError: a setting matters to the others alone.
    """
    kind, other = ClientTexts if of_texts else ClientImages, ClientFolder()
    names = [field.name for field in dataclasses.fields(kind)]
    for field in dataclasses.fields(source):
        value, usual = getattr(source, field.name), getattr(other, field.name)
        expected = f"left out: the clients have {'texts' if of_texts else 'images'}"
        good = field.name in names or value == usual
        require_that(good, f"source.{field.name}", value, expected)
    return kind(**{name: getattr(source, name) for name in names})


_USERS = ("client", "user", "client_id", "user_id", "author", "speaker")


class Client(NamedTuple):
    """Where a client's examples are.

    Attributes:
      name: of the client.
      path: of its file or folder, or of the file of all users.
      of_texts: whether its examples are texts; otherwise they are images.
      user: its name in LEAF's files, or in a column of a file of records; None for a
        file or folder that is the client's alone.
      column: that column.
    """

    name: str
    path: Path
    of_texts: bool
    user: str | None = None
    column: str | None = None


class Clients(NamedTuple):
    """The clients whose examples the base learns, and those who federate."""

    upstream: list[Client]
    federated: list[Client]


def find(data: Sequence[Path]) -> list[Client]:
    """The clients of a folder, in the order of their names, or the users in a file.

    Raises:
      ValueError: there are fewer than two, or some have texts and others images.
    """
    if len(data) != 1 or not data[0].exists():
        names = " ".join(map(str, data)) or "empty"
        expected = "one folder, with a file or folder per client, or a file of users"
        raise ValueError(f"source.data is {names}: it must be {expected}")
    path = data[0]
    clients = _users(path) or (_of_folder if path.is_dir() else _of_column)(path)
    if len(clients) < 2:
        raise ValueError(
            f"{path} holds {len(clients)} clients ({_content(path)}): it must hold 2 "
            "or more, each a file of texts (.jsonl, .csv, ...), an .npz file or a "
            f"folder of images, or a user in a column ({', '.join(_USERS)}) or of LEAF"
        )
    kinds = {client.of_texts: client.name for client in clients}
    if len(kinds) > 1:
        raise ValueError(
            f"{path} holds texts ({kinds[True]}) and images ({kinds[False]}): all "
            "clients must be of one kind"
        )
    return clients


def _users(path: Path) -> list[Client]:
    return [
        Client(name, path, user.of_texts, name)
        for name, user in leaf.users(path).items()
        if len(user.labels)
    ]


def _of_column(path: Path) -> list[Client]:
    """The users that a column of a file of records names, if it has one."""
    if not _is_text(path):
        return []
    rows, _ = records.read(path, _USERS)
    columns = [name for name in (rows[0][1] if rows else ()) if name.lower() in _USERS]
    if not columns:
        return []
    names = dict.fromkeys(str(row.get(columns[0])) for _, row in rows)
    return [Client(n, path, of_texts=True, user=n, column=columns[0]) for n in names]


def _of_folder(path: Path) -> list[Client]:
    """A client for each file of texts, .npz file, and folder with either or images."""
    content = visible(path)
    files = [each for each in content if each.is_file()]
    others = [
        *(Client(f.name, f, of_texts=False) for f in files if f.suffix == ".npz"),
        *(Client(f.name, f, _holds_texts(f)) for f in content if f.is_dir()),
    ]
    found = records.files_in(path) if any(map(_is_text, files)) else []
    if others:  # beside them, a .txt file holds notes
        found = [each for each in found if ".txt" not in each.suffixes]
    named = [*others, *(Client(each.name, each, of_texts=True) for each in found)]
    return sorted(named, key=lambda client: client.name)


def _is_text(path: Path) -> bool:
    return records.is_file_of_records(path)


def _holds_texts(folder: Path) -> bool:
    return any(each.is_file() and _is_text(each) for each in visible(folder))


def _content(path: Path) -> str:
    """What a path holds, in a few words."""
    names = [each.name for each in visible(path)] if path.is_dir() else [path.name]
    return ", ".join(names[:3]) + (" and more" if len(names) > 3 else "") or "nothing"


def divide(experiment: Experiment) -> Clients:
    """Draw the clients for the base; the first of the others, by name, federate."""
    source, seed = experiment.source, bases.settings_of(experiment).seed
    clients = find(source.data)
    upstream = num_upstream(source, len(clients))
    order = np.random.default_rng([seed, 0]).permutation(len(clients))
    federated = np.sort(order[upstream:])[: experiment.cells.clients]
    return Clients(
        [clients[i] for i in order[:upstream]], [clients[i] for i in federated]
    )


# --- Settings that suit the data -----------------------------------------------------

_UNSET = ([AUTO], AUTO, 0)
_OF_IMAGES = {
    "lora.targets": ("query", "value"),
    "lora.whole": ("head",),
    "merging.curvature": "empirical",
    "pretraining.batch_size": 64,
    "pretraining.learning_rate": 1e-3,
}
_OF_TEXTS = {
    "lora.targets": ("q_proj", "v_proj"),
    "lora.whole": (),
    "merging.curvature": "sampled",
    "pretraining.batch_size": 32,
    "pretraining.learning_rate": 2e-3,
}


def resolve(experiment: Experiment) -> Experiment:
    """The experiment with the number of clients, and settings for their kind of data.

    Raises:
      ValueError: there are fewer clients than it needs, or a setting is of the other
        kind.
    """
    clients = find(experiment.source.data)
    of_texts = clients[0].of_texts
    source = narrowed(experiment.source, of_texts=of_texts)
    experiment = dataclasses.replace(experiment, source=source)
    largest = len(clients) - num_upstream(source, len(clients))
    number = experiment.cells.clients
    require_that(number <= largest, "cells.clients", number, f"{largest} or less")
    defaults = _OF_TEXTS if of_texts else _OF_IMAGES
    values = experiment.settings()
    changes = {n: x for n, x in defaults.items() if values[n] in _UNSET}
    filled = experiment.set(changes | {"cells.clients": number or largest})
    size = scale.TEXTS if of_texts else scale.IMAGES
    return filled.set(scale.suited(filled, size))
