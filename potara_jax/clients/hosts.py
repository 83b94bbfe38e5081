"""Several hosts as one: they join, agree, keep what is done, and end together.

Every host runs the same script, see `examples/many_hosts.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

from potara_jax.adapters import folders
from potara_jax.clients.mesh import whole
from potara_jax.versions import version

Description = dict[str, str]
_PACKAGES = ("potara_jax", "jax", "jaxlib", "flax", "optax", "numpy")
_OPTIONS = (
    *("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl"),
    *("jax_threefry_partitionable", "jax_numpy_dtype_promotion"),
)
_SHOWN = 4
_LAST_WORDS = (
    "potara: host {} of {} has ended early, for the reason above or because another "
    "host is gone; start the same command again on all hosts"
)


class HostsDiffer(ValueError):
    """What must be the same on all hosts is not; every host raises it."""


# --- Joining and ending --------------------------------------------------------------


@contextmanager
def joined(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    silence: int = 30,
) -> Generator[None, None, None]:
    """Join the other hosts for the length of a block, before anything else of JAX.

    A host that fails in the block ends at once, and the others end when they miss it:
    each writes one last line to standard error and exits with a status that is not 0.
    `HostsDiffer` ends all of them with its line and status 2.

    Args:
      coordinator: the first host's address and a free port on it. None: as Slurm, a
        TPU pod or Kubernetes says; so with the next two.
      processes: the number of processes.
      process: the number of this one, from 0.
      silence: seconds after which a host that is not heard is gone.
    """
    jax.distributed.initialize(
        coordinator, processes, process, heartbeat_timeout_seconds=silence
    )
    place = jax.process_index(), jax.process_count()
    with _last_words(_LAST_WORDS.format(*place)):
        try:
            yield
        except HostsDiffer as error:
            print(f"potara: {error}", file=sys.stderr, flush=True)
            jax.distributed.shutdown()
            code = 2
        except BaseException:
            _end_at_once()
        else:
            jax.distributed.shutdown()
            code = 0
    if code:
        sys.exit(code)


def _end_at_once() -> NoReturn:
    """End this process without waiting for the others, as the usual exit would."""
    traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


@contextmanager
def _last_words(line: str) -> Generator[None, None, None]:
    """Have a shell write a line if this process ends before the block does.

    JAX aborts a process that misses another one, and then no Python runs.
    """
    shell = subprocess.Popen(
        ("/bin/sh", "-c", 'read -r done || echo "$0" >&2', line),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield
    shell.communicate(b"done\n")


# --- Agreeing ------------------------------------------------------------------------


def check_hosts(**values: Any) -> None:
    """Raise unless all hosts have the same software and the same values.

    Every host calls it, with values of the same kinds: pytrees of arrays, keys,
    dataclasses, and what JSON has. Arrays are compared by content, and those that are
    spread over hosts by shape.

    Raises:
      HostsDiffer: a `ValueError` that names what differs, and on which hosts.
    """
    if jax.process_count() == 1:
        return
    mine = json.dumps(described(values)).encode()
    digests = _gathered(hashlib.sha256(mine).digest())
    if len(set(digests)) == 1:
        return
    longest = int(np.max(process_allgather(np.int32(len(mine)))))
    each = [json.loads(text) for text in _gathered(mine.ljust(longest))]
    raise HostsDiffer(difference(each))


def _gathered(text: bytes) -> list[bytes]:
    """Bytes of one length from every process."""
    rows = process_allgather(np.frombuffer(text, np.uint8))
    return [np.asarray(row, np.uint8).tobytes() for row in rows]


def described(values: Mapping[str, Any]) -> Description:
    """This host's software and values, one line for each."""
    software = {"python": platform.python_version()}
    software |= {name: version(name) for name in _PACKAGES}
    software |= {name: str(getattr(jax.config, name, None)) for name in _OPTIONS}
    software["device"] = jax.local_devices()[0].device_kind
    return software | lines(values)


def lines(values: Mapping[str, Any]) -> Description:
    """Settings, keys, and arrays by their content, one line for each."""
    plain, nothing = _plain(dict(values)), lambda x: x is None
    leaves = jax.tree_util.tree_leaves_with_path(plain, is_leaf=nothing)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return {name(path): _line(leaf) for path, leaf in leaves}


def difference(each: Sequence[Description]) -> str:
    """What differs between hosts, in one line."""
    names = dict.fromkeys(name for one in each for name in one)
    values = {name: [one.get(name, "missing") for one in each] for name in names}
    differ = [f"{n} is {_by_host(v)}" for n, v in values.items() if len(set(v)) > 1]
    rest = len(differ) - _SHOWN
    more = [f"and {rest} more"] if rest > 0 else []
    things = "; ".join(differ[:_SHOWN] + more)
    return f"hosts differ: {things}: give all of them the same"


def _by_host(values: Sequence[str]) -> str:
    """`a on host 0, b on hosts 1 and 2`."""

    def place(value: str) -> str:
        *others, last = [str(i) for i, x in enumerate(values) if x == value]
        hosts = f"hosts {', '.join(others)} and {last}" if others else f"host {last}"
        return f"{value} on {hosts}"

    return ", ".join(place(value) for value in dict.fromkeys(values))


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, at any depth."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {str(name): _plain(x) for name, x in value.items()}
    if type(value) in (list, tuple):
        return [_plain(x) for x in value]
    return value


def _line(leaf: Any) -> str:
    """A value in one line, the same on all hosts that have it."""
    if isinstance(leaf, jax.Array | np.ndarray):
        return _array_line(leaf)
    if callable(leaf):
        return f"{leaf.__module__}.{getattr(leaf, '__qualname__', type(leaf).__name__)}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(leaf))[:100]


def _array_line(x: jax.Array | np.ndarray) -> str:
    shape = f"{x.dtype}{[*x.shape]}"
    if isinstance(x, jax.Array):
        if not x.is_fully_addressable:
            return shape
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
    content = np.ascontiguousarray(x).tobytes()
    return f"{shape} {hashlib.sha256(content).hexdigest()[:8]}"


# --- Keeping -------------------------------------------------------------------------


def save(path: Path, number: int, tree: Any) -> None:
    """Write arrays after a number of rounds; every host calls it, the first writes.

    The file takes the place of the one before as a whole.

    Args:
      path: the file.
      number: of the rounds that are done.
      tree: what the rounds go on from, such as a `Progress`.
    """
    leaves = [whole(leaf) for leaf in jax.tree.leaves(tree)]
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: Any = {
        str(n): np.frombuffer(x.tobytes(), np.uint8) for n, x in enumerate(leaves)
    }
    stream, new = io.BytesIO(), folders.beside(path)
    np.savez(stream, number=number, shapes=_shapes(leaves), **arrays)
    new.write_bytes(stream.getvalue())
    os.replace(new, path)


def restore(path: Path, like: Any) -> tuple[int, Any]:
    """The number and the arrays that `save` has written; 0 and `like` without a file.

    Every host calls it; only the first needs the file.

    Args:
      path: the file.
      like: arrays of the same shapes, such as those of the first round.

    Raises:
      ValueError: the file is of other shapes.
    """
    content = _from_first(path)
    if not content:
        return 0, like
    leaves, structure = jax.tree.flatten(like)
    with np.load(io.BytesIO(content)) as file:
        if str(file["shapes"]) != _shapes(leaves):
            raise ValueError(f"{path} is of other settings: remove it, or name another")
        each = [
            np.frombuffer(file[str(n)].tobytes(), x.dtype).reshape(x.shape)
            for n, x in enumerate(leaves)
        ]
        return int(file["number"]), jax.tree.unflatten(structure, each)


def _shapes(leaves: Sequence[Any]) -> str:
    return " ".join(f"{x.dtype}{[*x.shape]}" for x in leaves)


def _from_first(path: Path) -> bytes:
    """The first host's file; nothing if it has none."""
    here = jax.process_index() == 0 and path.exists()
    content = path.read_bytes() if here else b""
    if jax.process_count() == 1:
        return content
    size = int(broadcast_one_to_all(np.int32(len(content))))
    bytes_ = np.frombuffer(content.ljust(size, b"\0"), np.uint8)
    return np.asarray(broadcast_one_to_all(bytes_), np.uint8).tobytes()
