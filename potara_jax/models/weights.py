"""Hugging Face checkpoints, read and written one tensor at a time, without torch.

    config.json                    sizes, see each model's `config_of`
    model.safetensors              all tensors; or
    model-*-of-*.safetensors       and model.safetensors.index.json

A model's *table* says where each of its parameters is stored. It serves in both
directions, so a folded model can be written as a checkpoint again.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
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

from potara_jax.adapters import folders
from potara_jax.adapters.lora import Params
from potara_jax.errors import brief

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_MAX_LISTED = 8
_FLOATS = "F64", "F32", "F16", "BF16"  # as safetensors names them


class Conversion(NamedTuple):
    """How a parameter is stored.

    Attributes:
      to_file: `to_file(x)`, the tensor of a parameter.
      from_file: `from_file(x, shape)`, and back.
    """

    to_file: Callable[[Any], Any]
    from_file: Callable[[Any, tuple[int, ...]], Any]


def _linear(inputs: int) -> Conversion:
    """A kernel `[inputs..., outputs...]`, stored as `[outputs, inputs]`."""

    def to_file(x: Any) -> Any:
        size = int(np.prod(x.shape[:inputs]))
        return x.reshape(size, -1).T

    return Conversion(to_file, lambda x, shape: x.T.reshape(shape))


SAME = Conversion(lambda x: x, lambda x, shape: x)
FLAT = Conversion(lambda x: x.reshape(-1), lambda x, shape: x.reshape(shape))
LINEAR, FROM_HEADS = _linear(1), _linear(2)
PATCHES = Conversion(
    lambda x: x.transpose(3, 2, 0, 1), lambda x, shape: x.transpose(2, 3, 1, 0)
)


class Rule(NamedTuple):
    """Where a parameter is stored.

    In both names, `*` stands for a layer's number. If only the name in the files has
    one, the parameter has a leading axis of layers.

    Attributes:
      ours: its path in our model.
      theirs: its name in the files.
      conversion: how it is stored.
      first: the number of the first layer on that axis.
    """

    ours: str
    theirs: str
    conversion: Conversion = SAME
    first: int = 0


class Table(NamedTuple):
    """A model's rules.

    Attributes:
      rules: from the names of tensors in the files to parameters.
      ignored: `fnmatch` patterns of tensors in the files that the model does not use.
      prefix: of all names; missing in checkpoints of the model without its head.
      renamed: what transformers 5 calls modules whose names in the files are older:
        parts of names, and what stands in their places, in order. Several things stand
        for a module that is split into equal parts of its outputs.
      older: ends of names, and what older files have in their places.
    """

    rules: Sequence[Rule]
    ignored: Sequence[str] = ()
    prefix: str = ""
    renamed: Sequence[tuple[str, ...]] = ()
    older: Sequence[tuple[str, str]] = ()

    def modules(self, name: str, *, transformers: int) -> list[str]:
        """The names in a version of transformers of a module with a name in the files.

        The names of tensors in checkpoints are the same in all versions; an adapter's
        are those of the modules. A module that is split has several.

        Args:
          name: of the module in the files.
          transformers: the major version.
        """
        names = [name]
        for before, *parts in self.renamed if transformers >= 5 else ():
            if before in names[0]:
                names = [x.replace(before, part) for x in names for part in parts]
        return names

    def without_layers(self, numbers: Iterable[int]) -> Table:
        """The table of a model without the layers of these numbers in the files."""
        starts = {
            rule.theirs.partition("*")[0].removeprefix(self.prefix)
            for rule in self.rules
            if "*" in rule.theirs
        }
        pairs = itertools.product(sorted(starts), numbers)
        unused = (f"*{start}{number}.*" for start, number in pairs)
        return self._replace(ignored=(*self.ignored, *unused))

    def of(self, names: Iterable[str]) -> Table:
        """The table for a checkpoint whose tensors have these names."""
        names, theirs = list(names), [rule.theirs for rule in self.rules]
        if not any(name.startswith(self.prefix) for name in names):
            theirs = [name.removeprefix(self.prefix) for name in theirs]
        for end, older in self.older:
            if any(name.endswith(older) for name in names):
                theirs = [_with_end(name, end, older) for name in theirs]
        pairs = zip(self.rules, theirs, strict=True)
        return self._replace(rules=[rule._replace(theirs=x) for rule, x in pairs])


def _with_end(name: str, end: str, other: str) -> str:
    """A name with another end, if it has this one."""
    return name.removesuffix(end) + other if name.endswith(end) else name


class Storage(NamedTuple):
    """Where a parameter is stored: under one name, or stacked, under one per layer."""

    names: tuple[str, ...]
    stacked: bool
    conversion: Conversion


# --- Where a checkpoint is -----------------------------------------------------------

_PATTERNS = "*.json", "*.safetensors", "vocab.txt"


def folder_of(name: str) -> Path:
    """The folder of a checkpoint.

    Args:
      name: the folder, or a model's name on Hugging Face's hub, which is downloaded
        unless the hub's cache has it.

    Raises:
      ValueError: it is neither, or cannot be downloaded.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise ValueError(f"{name} is neither a folder nor a name as owner/model")
    import huggingface_hub

    reason = ""
    for cached in (True, False):
        try:
            folder = huggingface_hub.snapshot_download(
                name, local_files_only=cached, allow_patterns=list(_PATTERNS)
            )
            return Path(folder)
        except Exception as error:  # whatever the network raises
            reason = brief(error)
    raise ValueError(
        f"{name} is not on this machine and cannot be downloaded ({reason}); where "
        f"there is a network, `hf download {name} --local-dir FOLDER` fetches it: name "
        "that folder (in experiments, by --checkpoint)"
    )


def files_of(name: str) -> list[Path]:
    """The files of a checkpoint in a folder, sorted; none for a name on the hub."""
    folder = Path(name).expanduser()
    return sorted(path for pattern in _PATTERNS for path in folder.glob(pattern))


# --- Reading -------------------------------------------------------------------------


def load(
    folder: str | os.PathLike[str],
    table: Table,
    shapes: Params,
    *,
    dtype: str | None = None,
    place: Callable[[str, np.ndarray], jax.Array] = lambda path, x: jnp.asarray(x),
) -> Params:
    """Load the parameters in a folder.

    Args:
      folder: a checkpoint's folder.
      table: the model's table.
      shapes: the parameters' shapes, `jax.eval_shape(model.init, ...)["params"]`.
      dtype: of the parameters; default: as they are stored.
      place: `place(path, x)` puts a parameter on its devices; default: on the first
        device. The host's memory holds one parameter at a time.

    Returns:
      The parameters.

    Raises:
      ValueError: tensors are missing, unknown to the model, of another shape, or not
        floating-point numbers (the message lists all of them), or one is not finite.
    """
    files = open_all(Path(folder))
    flat: dict[str, Any] = dict(flatten_dict(dict(shapes), sep="/"))
    table = table.of(files)
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
    """The file of each tensor, by name.

    Raises:
      ValueError: a file is damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one with {CONFIG} in it")
    files: dict[str, File] = {}
    for path in _files(folder):
        try:
            file = File(path, safetensors.safe_open(path, framework="numpy"))
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{path} is cut short or damaged ({error})") from None
        files |= dict.fromkeys(file.tensors.keys(), file)
    return files


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        with errors_naming(index):
            names = set(read_object(index)["weight_map"].values())
            paths = [folder / name for name in sorted(names)]
    else:
        paths = [folder / WEIGHTS]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{folder} holds no {', '.join(missing)}; download it again")
    return paths


def stored_as(path: str, shape: Sequence[int], table: Table) -> Storage:
    """Where the parameter with a path and a shape is stored."""
    for rule in table.rules:
        number = _number(rule.ours, path)
        if number is None:
            continue
        if "*" in rule.ours or "*" not in rule.theirs:
            return Storage((rule.theirs.replace("*", number),), False, rule.conversion)
        numbers = range(rule.first, rule.first + shape[0])
        names = (rule.theirs.replace("*", str(number)) for number in numbers)
        return Storage(tuple(names), True, rule.conversion)
    raise ValueError(f"the model's table has no rule for its parameter '{path}'")


def _number(pattern: str, path: str) -> str | None:
    """What the `*` of a pattern stands for, empty without one; None: no match."""
    before, star, after = pattern.partition("*")
    if not star:
        return "" if pattern == path else None
    fits = path.startswith(before) and path.endswith(after)
    middle = path[len(before) : len(path) - len(after)]
    return middle if fits and middle.isdigit() else None


def _check(
    folder: Path,
    files: Mapping[str, File],
    stored: Mapping[str, Storage],
    flat: Mapping[str, Any],
    table: Table,
) -> None:
    """Raise `ValueError` with all tensors that do not fit the model."""
    paths = {name: path for path, storage in stored.items() for name in storage.names}
    expected = [name for name in paths if name in files]
    mismatches = (
        _mismatch(name, files[name], stored[paths[name]], flat[paths[name]].shape)
        for name in expected
    )
    problems = {
        "missing": [name for name in paths if name not in files],
        "of another shape or dtype": [text for text in mismatches if text],
        "unknown": [n for n in files if n not in paths and not _is_ignored(n, table)],
    }
    lines = [f"{len(n)} {kind}: {_listed(n)}" for kind, n in problems.items() if n]
    if lines:
        raise ValueError(
            f"{folder} is a checkpoint of another model; tensors {'; '.join(lines)}"
        )


def _is_ignored(name: str, table: Table) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in table.ignored)


def _mismatch(
    name: str, file: File, storage: Storage, shape: tuple[int, ...]
) -> str | None:
    """What is wrong with a tensor of a parameter with a shape, if anything is."""
    ours = jax.ShapeDtypeStruct(shape[1:] if storage.stacked else shape, jnp.float32)
    expected = jax.eval_shape(storage.conversion.to_file, ours).shape
    tensor = file.tensors.get_slice(name)
    stored, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
    if dtype not in _FLOATS:
        return f"{name} of {dtype}, which is none of {', '.join(_FLOATS)}"
    return None if stored == expected else f"{name} {stored} instead of {expected}"


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_LISTED
    more = f" and {rest} more" if rest > 0 else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _read(
    files: Mapping[str, File],
    storage: Storage,
    shape: tuple[int, ...],
    dtype: str | None,
) -> np.ndarray:
    """A parameter, from one tensor or from one per layer."""

    def tensor(name: str) -> np.ndarray:
        return _cast(_finite(name, files[name]), dtype)

    from_file, names = storage.conversion.from_file, storage.names
    if not storage.stacked:
        return np.ascontiguousarray(from_file(tensor(names[0]), shape))
    stack = np.empty(shape, tensor(names[0]).dtype)
    for layer, name in enumerate(names):
        stack[layer] = from_file(tensor(name), shape[1:])
    return stack


def _finite(name: str, file: File) -> np.ndarray:
    tensor = file.tensors.get_tensor(name)
    if not np.isfinite(tensor).all():
        raise ValueError(f"{file.path}: {name} is not finite; download it again")
    return tensor


def _cast(x: np.ndarray, dtype: str | None) -> np.ndarray:
    return x if dtype is None else x.astype(jnp.dtype(dtype))


# --- Writing -------------------------------------------------------------------------


def save(
    folder: str | os.PathLike[str],
    params: Params,
    table: Table,
    config: dict[str, Any],
    *,
    dtype: str | None = None,
) -> None:
    """Write parameters and `config` as a Hugging Face checkpoint of one file.

    Each file is written under a temporary name and renamed, the weights last.

    Args:
      folder: the folder to write.
      params: the parameters.
      table: the model's table.
      config: the content of `config.json`.
      dtype: of the tensors in the file; default: the parameters'.

    Raises:
      OSError: the files cannot be written.
      ValueError: a value is too large for the dtype.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for path, x in flatten_dict(dict(params), sep="/").items():
        tensors |= _tensors(path, np.asarray(x), table, dtype)
    temporary = folders.beside(folder / CONFIG)
    temporary.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / CONFIG)
    temporary = folders.beside(folder / WEIGHTS)
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(folder)) from None
    # safetensors makes files that only the user can read.
    shutil.copymode(folder / CONFIG, temporary)
    os.replace(temporary, folder / WEIGHTS)


def _tensors(
    path: str, value: np.ndarray, table: Table, dtype: str | None
) -> dict[str, np.ndarray]:
    """A parameter's tensors in the file."""
    storage = stored_as(path, value.shape, table)
    layers = value if storage.stacked else [value]
    to_file = storage.conversion.to_file
    tensors = (np.ascontiguousarray(to_file(layer)) for layer in layers)
    pairs = zip(storage.names, tensors, strict=True)
    return {name: _narrowed(name, x, dtype) for name, x in pairs}


def _narrowed(name: str, x: np.ndarray, dtype: str | None) -> np.ndarray:
    """A tensor in a dtype; raises `ValueError` if that cannot hold its values."""
    with np.errstate(over="ignore"):
        narrowed = _cast(x, dtype)
    if np.isfinite(narrowed).all() or not np.isfinite(x).all():
        return narrowed
    raise ValueError(
        f"{name} has values up to {np.abs(x).max():g}, which do not fit {dtype}; "
        "choose dtype float32 or bfloat16"
    )


# --- Descriptions --------------------------------------------------------------------


@contextmanager
def errors_naming(path: str | os.PathLike[str]) -> Generator[None]:
    """Turn errors about what a file holds into a `ValueError` that names the file."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; download it again") from None
    except (TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"{path} cannot be understood ({error})") from None
    except ValueError as error:
        reason, folder = str(error), str(Path(path).parent)
        raise ValueError(reason if folder in reason else f"{path}: {reason}") from None


def check_sizes(description: Mapping[str, Any], *names: str) -> None:
    """Raise `ValueError` unless the named values are integers above 0."""
    for name in names:
        value = description[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}: it must be an integer above 0")


def check_numbers(description: Mapping[str, Any], *names: str) -> None:
    """Raise `ValueError` unless the named values are finite numbers above 0."""
    for name in names:
        value = description[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}: it must be a number above 0")


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the `config.json` of a folder.

    Raises:
      ValueError: the folder has none.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} holds no {CONFIG}; name a Hugging Face folder")
    return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object of a file.

    Raises:
      ValueError: the file holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; download it again")
    return content
