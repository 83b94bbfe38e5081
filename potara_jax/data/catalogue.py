"""Public data sets through tensorflow-datasets, without TensorFlow.

A data set is read from a folder of prepared data sets; a missing one is downloaded and
prepared first. Data sets that tensorflow-datasets lacks, or needs TensorFlow for, have
builders in `data.builders`.
"""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from potara_jax.data.images import Images
from potara_jax.data.text import Example
from potara_jax.errors import brief

DEFAULT = Path("~/tensorflow_datasets")

Record = Mapping[str, Any]
_HOST = "storage.googleapis.com"  # which tensorflow-datasets asks as well


class Source(NamedTuple):
    """A text task.

    Attributes:
      name: of its data set.
      read: an example from a record.
      train: the split to train on.
      test: the split to test on; a data set whose test labels are not public is tested
        on what it calls validation.
    """

    name: str
    read: Callable[[Record], Example]
    train: str = "train"
    test: str = "validation"


# --- Reading prepared data -----------------------------------------------------------


def records(
    name: str, split: str, folder: str | os.PathLike[str] = DEFAULT
) -> Iterator[Record]:
    """The records of a data set's split, one by one.

    Args:
      name: of the data set, in tensorflow-datasets or `data.builders`.
      split: its split.
      folder: of prepared data sets.

    Returns:
      An iterator over records.

    Raises:
      ValueError: the data set is damaged, or is missing and cannot be prepared.
    """
    import tensorflow_datasets as tfds
    import tensorflow_datasets.image_classification
    import tensorflow_datasets.question_answering
    import tensorflow_datasets.text

    from potara_jax.data import builders

    folder = Path(folder).expanduser()
    options = {"data_dir": folder, "file_format": "array_record"}
    kind = builders.BUILDERS.get(name)
    path = folder / (kind.name if kind else name)
    advice = ""
    if path.exists():
        advice = f"delete {path}, which is incomplete, damaged or of another version; "
    try:
        builder = kind(**options) if kind else tfds.builder(name, **options)
        if not builder.data_path.exists():
            check_network()
            builder.download_and_prepare()
        source: Any = builder.as_data_source(split=split)
    except Exception as error:  # whatever a download or a damaged file raises
        raise ValueError(
            f"data set {name} is not in {folder} and cannot be prepared "
            f"({brief(error)}); {advice}prepare it where there is a network, with the "
            f"same command, and copy {path} here"
        ) from None
    return _checked(source, path)


def check_network() -> None:
    """Raise `OSError` where there is none, which downloads would find out in minutes.

    A proxy may find hosts that this machine does not.
    """
    if urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(_HOST, 443)
    except socket.gaierror:
        raise OSError(f"no network: {_HOST} is not found") from None


def _checked(source: Iterable[Record], path: Path) -> Iterator[Record]:
    try:
        yield from source
    except Exception as error:  # whatever the reader raises
        raise ValueError(
            f"{path} is damaged ({brief(error)}); delete it, and the same command "
            "prepares it again where there is a network"
        ) from None


def texts(
    source: Source,
    part: Literal["train", "test"],
    folder: str | os.PathLike[str] = DEFAULT,
) -> list[Example]:
    """The examples of a task's `train` or `test` part.

    Args:
      source: of the task.
      part: which split.
      folder: where data sets are kept.

    Raises:
      ValueError: as `records` does.
    """
    split = {"train": source.train, "test": source.test}[part]
    return [source.read(_plain(r)) for r in records(source.name, split, folder)]


def _plain(record: Any) -> Any:
    """A record with bytes as text, and arrays as numbers and lists."""
    if isinstance(record, Mapping):
        return {name: _plain(value) for name, value in record.items()}
    if isinstance(record, np.ndarray | np.generic):
        return _plain(record.tolist())
    if isinstance(record, list):
        return [_plain(value) for value in record]
    return record.decode() if isinstance(record, bytes) else record


def images(name: str, split: str, folder: str | os.PathLike[str] = DEFAULT) -> Images:
    """All images of a split.

    Args:
      name: of the data set.
      split: the name of the split.
      folder: where data sets are kept.

    Raises:
      ValueError: as `records` does.
    """
    pairs = [
        (np.asarray(r["image"]), int(r["label"])) for r in records(name, split, folder)
    ]
    pixels = np.stack([image for image, _ in pairs])
    labels = np.array([label for _, label in pairs], np.int32)
    return Images(pixels, labels, tuple(map(str, range(int(labels.max()) + 1))))
