"""Weights of Hugging Face's files, in and out, one tensor at a time, without torch.

    config.json                    sizes, see each model's `config_of`
    model.safetensors              all tensors; or
    model-*-of-*.safetensors       and model.safetensors.index.json

A model's *table* says where each of its parameters is stored. It is read in both
directions, so a folded model can be written as a checkpoint again.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from potara_jax.adapters.lora import Params

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_MOST_NAMED = 8
_FLOATS = "F64", "F32", "F16", "BF16"  # as safetensors names them


class Kind(NamedTuple):
    """How a parameter is stored: `there(x)`, and `here(x, shape)` back."""

    there: Callable[[Any], Any]
    here: Callable[[Any, tuple[int, ...]], Any]


def _linear(inputs: int) -> Kind:
    """A kernel `[inputs..., outputs...]`, stored as `[outputs, inputs]`."""

    def there(x):
        size = int(np.prod(x.shape[:inputs]))
        return x.reshape(size, -1).T

    return Kind(there, lambda x, shape: x.T.reshape(shape))


SAME = Kind(lambda x: x, lambda x, shape: x)
FLAT = Kind(lambda x: x.reshape(-1), lambda x, shape: x.reshape(shape))
LINEAR, FROM_HEADS = _linear(1), _linear(2)
PATCHES = Kind(
    lambda x: x.transpose(3, 2, 0, 1), lambda x, shape: x.transpose(2, 3, 1, 0)
)


class Rule(NamedTuple):
    """A parameter's path here and its name there, `*` a layer's number.

    Where only the name there has a `*`, the parameter has a leading axis of layers.
    """

    ours: str
    theirs: str
    kind: Kind = SAME


class Table(NamedTuple):
    """A model's rules.

    ignored: patterns of names there that are of no use here, as `fnmatch` has them.
    prefix: what a checkpoint of the model without its head leaves out of every name.
    """

    rules: Sequence[Rule]
    ignored: Sequence[str] = ()
    prefix: str = ""

    def of(self, names: Iterable[str]) -> Table:
        """The table of a checkpoint with such names."""
        if any(name.startswith(self.prefix) for name in names):
            return self
        bare = lambda rule: rule.theirs.removeprefix(self.prefix)
        return self._replace(rules=[r._replace(theirs=bare(r)) for r in self.rules])


class Stored(NamedTuple):
    """Where a parameter is stored: under one name, or one a layer."""

    names: tuple[str, ...]
    stacked: bool
    kind: Kind


# --- Where a checkpoint is -----------------------------------------------------------

_WANTED = "*.json", "*.safetensors"


def folder_of(name: str) -> Path:
    """The folder of a checkpoint: itself, or that of a name on Hugging Face's hub.

    What the hub's cache has is not downloaded again. Raises `ValueError` where it is
    neither a folder nor to be had.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise ValueError(f"{name} is neither a folder nor a name as owner/model")
    import huggingface_hub

    for here in (True, False):
        how = {"local_files_only": here, "allow_patterns": _WANTED}
        try:
            return Path(huggingface_hub.snapshot_download(name, **how))
        except Exception as error:  # whatever the network raises
            reason = " ".join(str(error).split())[:160]
    raise ValueError(
        f"{name} is not on this machine and cannot be downloaded ({reason}); fetch it "
        f"with `hf download {name}`, and name the folder"
    )


def files_of(name: str) -> list[Path]:
    """The files of a checkpoint in a folder, sorted; none for a name on the hub."""
    folder = Path(name).expanduser()
    return sorted(path for wanted in _WANTED for path in folder.glob(wanted))


# --- Reading -------------------------------------------------------------------------


def load(
    folder: str | os.PathLike[str],
    table: Table,
    shapes: Params,
    *,
    dtype: str | None = None,
    place: Callable[[str, np.ndarray], jax.Array] = lambda path, x: jnp.asarray(x),
) -> Params:
    """The parameters that a folder holds, in the shapes of `shapes`.

    shapes: as `jax.eval_shape(model.init, ...)["params"]` has them.
    dtype: of the floating-point parameters; default: as they are stored.
    place: puts a parameter of a path on its devices; by default, on the first one. No
      more than one parameter is in the host's memory at once.
    Raises `ValueError` with all tensors that are missing, that have another shape or
    are no floating-point numbers, or that the model does not know; and with one that
    is not finite.
    """
    files = open_all(Path(folder))
    flat, table = flatten_dict(dict(shapes), sep="/"), table.of(files)
    stored = {path: stored_as(path, x.shape, table) for path, x in flat.items()}
    _check(Path(folder), files, stored, flat, table)
    loaded = {
        path: place(path, _read(files, stored[path], flat[path].shape, dtype))
        for path in flat
    }
    return unflatten_dict(loaded, sep="/")


class File(NamedTuple):
    """An open file of tensors."""

    path: Path
    tensors: Any


def open_all(folder: Path) -> dict[str, File]:
    """Which file holds each tensor; raises `ValueError` where one is damaged."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one with {CONFIG} in it")
    found: dict[str, File] = {}
    for path in _files(folder):
        try:
            file = File(path, safetensors.safe_open(path, framework="numpy"))
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{path} is cut short or damaged ({error})") from None
        found |= dict.fromkeys(file.tensors.keys(), file)
    return found


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        with understanding(index):
            named = set(read_object(index)["weight_map"].values())
            paths = [folder / name for name in sorted(named)]
    else:
        paths = [folder / WEIGHTS]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{folder} holds no {', '.join(missing)}; download it again")
    return paths


def stored_as(path: str, shape: Sequence[int], table: Table) -> Stored:
    """Where a parameter of a path and shape is stored."""
    for rule in table.rules:
        number = _number(rule.ours, path)
        if number is None:
            continue
        if "*" in rule.ours or "*" not in rule.theirs:
            return Stored((rule.theirs.replace("*", number),), False, rule.kind)
        names = (rule.theirs.replace("*", str(i)) for i in range(shape[0]))
        return Stored(tuple(names), True, rule.kind)
    raise ValueError(f"the model's table has no rule for its parameter '{path}'")


def _number(pattern: str, path: str) -> str | None:
    """What stands for the `*`, empty where there is none; None: another path."""
    before, star, after = pattern.partition("*")
    if not star:
        return "" if pattern == path else None
    fits = path.startswith(before) and path.endswith(after)
    middle = path[len(before) : len(path) - len(after)]
    return middle if fits and middle.isdigit() else None


def _check(folder, files, stored: Mapping[str, Stored], flat, table: Table) -> None:
    wanted = {name: path for path, s in stored.items() for name in s.names}
    missing = [name for name in wanted if name not in files]
    known = lambda name: any(fnmatchcase(name, pattern) for pattern in table.ignored)
    extra = [name for name in files if name not in wanted and not known(name)]
    shaped = [
        text
        for name in wanted
        if name in files
        and (
            text := _unlike(name, files[name], stored[wanted[name]], flat[wanted[name]])
        )
    ]
    problems = {"missing": missing, "of another form": shaped, "not known": extra}
    told = [f"{len(n)} {what}: {_listed(n)}" for what, n in problems.items() if n]
    if told:
        raise ValueError(
            f"{folder} is a checkpoint for another model; tensors {'; '.join(told)}"
        )


def _unlike(name, file: File, stored: Stored, ours) -> str | None:
    shape = ours.shape[1:] if stored.stacked else ours.shape
    like = jax.eval_shape(stored.kind.there, jax.ShapeDtypeStruct(shape, jnp.float32))
    there = file.tensors.get_slice(name)
    found, kind = tuple(there.get_shape()), there.get_dtype()
    if kind not in _FLOATS:
        return f"{name} of {kind}, which is none of {', '.join(_FLOATS)}"
    return None if found == like.shape else f"{name} {found} in place of {like.shape}"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _read(files, stored: Stored, shape, dtype) -> np.ndarray:
    one = lambda name: _floating(_finite(name, files[name]), dtype)
    if not stored.stacked:
        return np.ascontiguousarray(stored.kind.here(one(stored.names[0]), shape))
    first = one(stored.names[0])
    whole = np.empty(shape, first.dtype)
    for layer, name in enumerate(stored.names):
        whole[layer] = stored.kind.here(one(name), shape[1:])
    return whole


def _finite(name: str, file: File) -> np.ndarray:
    found = file.tensors.get_tensor(name)
    if not np.isfinite(found).all():
        raise ValueError(f"{file.path}: {name} is not finite; download it again")
    return found


def _floating(x: np.ndarray, dtype) -> np.ndarray:
    return x if dtype is None else x.astype(jnp.dtype(dtype))


# --- Writing -------------------------------------------------------------------------


def save(
    folder: str | os.PathLike[str],
    params: Params,
    table: Table,
    config: dict,
    *,
    dtype: str | None = None,
) -> None:
    """Write parameters and `config` as Hugging Face has them, in one file.

    dtype: of the parameters there; default: as they are. The weights are written
    beside and renamed, after the configuration.
    Raises `OSError` where they cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for path, x in flatten_dict(dict(params), sep="/").items():
        value = _floating(np.asarray(x), dtype)
        stored = stored_as(path, value.shape, table)
        parts = value if stored.stacked else [value]
        there = (np.ascontiguousarray(stored.kind.there(part)) for part in parts)
        tensors |= dict(zip(stored.names, there, strict=True))
    beside = folder / f".{os.getpid()}.{CONFIG}"
    beside.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, folder / CONFIG)
    beside = folder / f".{os.getpid()}.{WEIGHTS}"
    try:
        save_file(tensors, beside, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(folder)) from None
    shutil.copymode(folder / CONFIG, beside)  # which safetensors leaves to the owner
    os.replace(beside, folder / WEIGHTS)


@contextmanager
def understanding(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise `ValueError` naming the file, where what it holds is not as expected."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; download it again") from None
    except (TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"{path} cannot be understood ({error})") from None
    except ValueError as error:
        told, folder = str(error), str(Path(path).parent)
        raise ValueError(told if folder in told else f"{path}: {told}") from None


def check_sizes(found: Mapping[str, Any], *names: str) -> None:
    """Raise `ValueError` where one of the values is no whole number above 0."""
    for name in names:
        value = found[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}: it must be a whole number above 0")


def check_numbers(found: Mapping[str, Any], *names: str) -> None:
    """Raise `ValueError` where one of the values is no finite number above 0."""
    for name in names:
        value = found[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}: it must be a number above 0")


def read_config(folder: str | os.PathLike[str]) -> dict:
    """`config.json` of a folder; raises `ValueError` where there is none."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} holds no {CONFIG}; name a Hugging Face folder")
    return read_object(path)


def read_object(path: Path) -> dict:
    """The JSON object of a file; raises `ValueError` where it holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object; download it again")
    return found
