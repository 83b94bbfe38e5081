"""What a server has done so far, in memory and in a file from which it goes on."""

from __future__ import annotations

import io
import json
import os
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from potara_jax.clients.hosts import lines
from potara_jax.flower import server
from potara_jax.flower.deployment import Deployment
from potara_jax.flower.messages import Npy, Stored, packed, read
from potara_jax.runs.files import atomic_file

Array = jax.Array
Metrics = dict[int, dict[str, Any]]
_RECORD = "record"


class Past(NamedTuple):
    """A federation after some rounds, as its server knows it.

    state: the server's. rounds: their number. counts: of every client's examples.
    secret: the key of cohorts and noise. federation: the name under which nodes keep
    what they know. trained, evaluated: what has happened, by round from 1.
    """

    state: server.State
    rounds: int
    counts: dict[int, int]
    secret: Array
    federation: str
    trained: Metrics
    evaluated: Metrics


class File(NamedTuple):
    """Where a server keeps a federation. settings: the run's, which must not change."""

    path: Path
    deployment: Deployment
    settings: Mapping[str, Any]


def begin(deployment: Deployment) -> Past:
    """A federation before its first round."""
    secret, name = server.secret_key(deployment), secrets.token_hex(8)
    return Past(server.begin(deployment), 0, {}, secret, name, {}, {})


def save(file: File, past: Past) -> None:
    """Write a federation to its file, which only its owner may read.

    Under privacy, whoever has the file can compute the noise.

    Args:
      file: where to.
      past: what the server has done.
    """
    record = past._asdict() | {"secret": None, "of": _identity(file)}
    record["state"] = {"changed": past.state.changed, "accepted": past.state.accepted}
    text = np.frombuffer(json.dumps(record).encode(), np.uint8)
    arrays = {"server": past.state.server, _RECORD: text}
    arrays["secret"] = jax.random.key_data(past.secret)
    write(file.path, packed(arrays))


def load(file: File) -> Past | None:
    """The federation in a file; None without one.

    Raises:
      ValueError: the file is damaged, or of another federation.
    """
    path, deployment = file.path, file.deployment
    if not path.exists():
        return None
    try:
        arrays = stored(path)
        record = json.loads(_content(arrays.pop(_RECORD)))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: remove it ({error})") from None
    _check(path, record["of"], _identity(file))
    key = deployment.key
    like = {"server": deployment.first_server, "secret": jax.random.key_data(key)}
    values = read(arrays, like)
    secret = jax.random.wrap_key_data(values["secret"], impl=jax.random.key_impl(key))
    state = record["state"]
    return Past(
        server.State(values["server"], state["changed"], _numbered(state["accepted"])),
        record["rounds"],
        _numbered(record["counts"]),
        secret,
        record["federation"],
        _numbered(record["trained"]),
        _numbered(record["evaluated"]),
    )


def _content(text: Stored) -> bytes:
    return np.load(io.BytesIO(text.data), allow_pickle=False).tobytes()


def _identity(file: File) -> dict[str, str]:
    """What tells a federation from another, one line for each thing."""
    deployment = file.deployment
    return lines(
        {
            "settings": dict(file.settings),
            "algorithm": deployment.algorithm.name,
            "clients": deployment.clients,
            "conditions": deployment.conditions,
            "wire": deployment.wire,
            "adapter": deployment.adapter,
            "key": deployment.key,
        }
    )


def _check(path: Path, kept: Mapping[str, str], given: Mapping[str, str]) -> None:
    for name in [*given, *kept]:
        if kept.get(name) != given.get(name):
            was, is_ = kept.get(name, "missing"), given.get(name, "missing")
            raise ValueError(
                f"{path} is of another federation, whose {name} is {was}, not {is_}: "
                "name another folder"
            )


def _numbered(record: Mapping[str, Any]) -> dict[int, Any]:
    """JSON's names as numbers."""
    return {int(number): value for number, value in record.items()}


# --- Files ---------------------------------------------------------------------------


def stored(path: Path) -> dict[str, Stored]:
    """The arrays of a file."""
    with zipfile.ZipFile(path) as file:
        content = lambda name: Npy("", (), "numpy.ndarray", file.read(name))
        return {name.removesuffix(".npy"): content(name) for name in file.namelist()}


def write(path: Path, arrays: Mapping[str, Stored]) -> None:
    """Write a file that `numpy.load` reads; it appears whole."""
    with atomic_file(path) as stream:
        os.fchmod(stream.fileno(), 0o600)
        with zipfile.ZipFile(stream, "w") as file:
            for name, array in arrays.items():
                entry = zipfile.ZipInfo(f"{name}.npy")  # without the time: same bytes
                file.writestr(entry, array.data)
