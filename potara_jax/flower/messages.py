"""Pytrees as named arrays, and back: nothing that arrives is trusted.

A factor of an adapter travels under PEFT's name and in PEFT's layout,

    base_model.model.<path>.lora_A.weight  [..., R, D]
    base_model.model.<path>.lora_B.weight  [..., K, R]

whose scale stays `alpha / R`; any other leaf under its path in the pytree, with dots.
What has no dtype in NumPy, such as bfloat16, travels as integers of its width, and its
name says so: `<name>:bfloat16`. Of a `Part`, the rank that is kept travels.

Dimension letters: `D` inputs, `R` rank, `K` outputs.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.federated.ledger import Part

_STYPE = "numpy.ndarray"
Arrays = dict[str, np.ndarray]
_PEFT = {"a": "lora_A.weight", "b": "lora_B.weight"}
_INTEGERS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_HEADERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Stored(Protocol):
    """An array in a message, as Flower has it: its bytes are those of a `.npy` file."""

    @property
    def stype(self) -> str: ...

    @property
    def data(self) -> bytes: ...


class Npy(NamedTuple):
    """An array as a `.npy` file's bytes, with the fields of Flower's `Array`."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


class Refused(ValueError):
    """Something in a message is not what it must be; the line says what."""


# --- Writing -------------------------------------------------------------------------


def packed(tree: Any) -> dict[str, Npy]:
    """A pytree as the arrays of a message."""
    return {name: npy(array) for name, array in named(tree).items()}


def npy(x: np.ndarray) -> Npy:
    """An array of a message; nothing is pickled."""
    stream = io.BytesIO()
    np.save(stream, x, allow_pickle=False)
    return Npy(x.dtype.name, x.shape, _STYPE, stream.getvalue())


def num_bytes(arrays: Mapping[str, Npy]) -> int:
    """The bytes of the numbers in a message, without their names and shapes."""
    return sum(
        np.dtype(x.dtype).itemsize * int(np.prod(x.shape, dtype=int))
        for x in arrays.values()
    )


def named(tree: Any) -> Arrays:
    """A pytree's leaves by name, on the host.

    Raises:
      ValueError: two leaves have one name.
    """
    tree = _map_parts(_cut, tree)
    arrays: Arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = name_of(path, leaf)
        if name in arrays:
            raise ValueError(f"two arrays are called '{name}': rename a module")
        arrays[name] = _plain(np.asarray(leaf), transposed=_is_factor(path))
    return arrays


def name_of(path: tuple[Any, ...], leaf: Any) -> str:
    """The name of a leaf, from its path in the pytree and its dtype."""
    words = [_word(key).replace("/", ".") for key in path]
    if _is_factor(path):
        words[-2:] = ["base_model.model", words[-2], _PEFT[words[-1]]]
    dtype = jnp.dtype(leaf.dtype)
    tag = f":{dtype.name}" if dtype.isbuiltin != 1 else ""
    return ".".join(words) + tag


def _word(key: Any) -> str:
    return str(next(getattr(key, x) for x in ("key", "name", "idx") if hasattr(key, x)))


def _is_factor(path: tuple[Any, ...]) -> bool:
    """Whether a leaf is `a` or `b` of a module."""
    return len(path) > 1 and _word(path[-1]) in _PEFT


def _plain(x: np.ndarray, *, transposed: bool) -> np.ndarray:
    """An array of a dtype that NumPy has; its last two axes swapped if `transposed`."""
    x = np.swapaxes(x, -1, -2) if transposed and x.ndim > 1 else x
    x = np.array(x, order="C")
    return x if x.dtype.isbuiltin == 1 else x.view(_INTEGERS[x.dtype.itemsize])


# --- Reading -------------------------------------------------------------------------


def read(
    stored: Mapping[str, Stored], like: Any, *, largest: float = float("inf")
) -> Any:
    """The pytree in a message.

    Args:
      stored: arrays by name.
      like: the pytree that is expected, of arrays or of their shapes.
      largest: the largest magnitude of a number.

    Returns:
      The pytree, NumPy arrays.

    Raises:
      Refused: an array is missing, is not expected, has another shape or dtype, is
        not what its bytes say, or has numbers that are not finite or too large.
    """
    kept: list[int] = []

    def cut(path: tuple[Any, ...], part: Any) -> Any:
        if not isinstance(part, Part):
            return part
        number = _kept(stored, name_of((*path, _KEPT), part.kept), part)
        kept.append(number)
        return {"kept": part.kept, "value": _cut_to(part.value, number)}

    expected = jax.tree_util.tree_map_with_path(cut, like, is_leaf=_is_part)
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    names = {name_of(path, leaf) for path, leaf in leaves}
    if unknown := sorted(set(stored) - names):
        raise Refused(f"'{unknown[0][:80]}' is not expected")
    values = [_leaf(stored, path, leaf, largest) for path, leaf in leaves]
    tree = jax.tree.unflatten(jax.tree.structure(expected), values)
    numbers = iter(kept)
    whole = lambda part, x: _padded(part, x, next(numbers)) if _is_part(part) else x
    return jax.tree.map(whole, like, tree, is_leaf=_is_part)


def _leaf(
    stored: Mapping[str, Stored], path: tuple[Any, ...], like: Any, largest: float
) -> np.ndarray:
    name, dtype = name_of(path, like), np.dtype(like.dtype)
    shape = tuple(like.shape)
    if flip := _is_factor(path) and len(shape) > 1:
        shape = (*shape[:-2], shape[-1], shape[-2])
    foreign = dtype.isbuiltin != 1
    plain = np.dtype(_INTEGERS[dtype.itemsize]) if foreign else dtype
    x = array_of(stored, name, shape, plain)
    x = x.view(dtype) if foreign else x
    if jnp.issubdtype(dtype, jnp.floating):
        _check_numbers(name, x, largest)
    return np.swapaxes(x, -1, -2) if flip else x


def array_of(
    stored: Mapping[str, Stored], name: str, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """An array of a message, from a `.npy` file's bytes; nothing is unpickled.

    Args:
      stored: arrays by name.
      name: the array's.
      shape: that it must have.
      dtype: that it must have.

    Raises:
      Refused: it is missing, damaged, or of another shape or dtype.
    """
    if name not in stored:
        raise Refused(f"'{name}' is missing")
    data, kind = stored[name].data, stored[name].stype
    if kind != _STYPE:
        raise Refused(f"'{name}' is a {kind[:40]}, not a {_STYPE}")
    stream = io.BytesIO(data)
    try:
        header = _HEADERS[np.lib.format.read_magic(stream)](stream)
    except (ValueError, KeyError, EOFError):
        raise Refused(f"'{name}' is not a NumPy array") from None
    given, in_columns, stored_as = header
    if (given, stored_as) != (shape, dtype):
        raise Refused(f"'{name}' is {stored_as}{list(given)}, not {dtype}{list(shape)}")
    if len(data) - stream.tell() != dtype.itemsize * int(np.prod(shape, dtype=int)):
        raise Refused(f"'{name}' is cut short or too long")
    flat = np.frombuffer(data, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if in_columns else "C")


def _check_numbers(name: str, x: np.ndarray, largest: float) -> None:
    wide = np.abs(x.astype(np.float32))
    if not np.isfinite(wide).all():
        raise Refused(f"'{name}' has numbers that are not finite")
    if wide.max(initial=0) > largest:
        raise Refused(f"'{name}' has {wide.max():.3g}: the limit is {largest:.3g}")


# --- Payloads of which only a part travels -------------------------------------------

_KEPT = jax.tree_util.DictKey("kept")


def _is_part(x: Any) -> bool:
    return isinstance(x, Part)


def _map_parts(fn: Callable[[Part], Any], tree: Any) -> Any:
    return jax.tree.map(
        lambda x: fn(x) if isinstance(x, Part) else x, tree, is_leaf=_is_part
    )


def _cut(part: Part) -> dict[str, Any]:
    return {"kept": part.kept, "value": _cut_to(part.value, int(part.kept))}


def _cut_to(adapter: Any, rank: int) -> Any:
    """Factors, or their shapes, of a smaller rank."""

    def entry(e: Mapping[str, Any]) -> dict[str, Any]:
        return {"a": _slice(e["a"], rank, -1), "b": _slice(e["b"], rank, -2)}

    return {path: entry(e) for path, e in adapter.items()}


def _slice(x: Any, rank: int, axis: int) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        shape = list(x.shape)
        shape[axis] = rank
        return jax.ShapeDtypeStruct(tuple(shape), x.dtype)
    return np.take(np.asarray(x), range(rank), axis)


def _kept(stored: Mapping[str, Stored], name: str, part: Part) -> int:
    """The rank that a client has sent, which must be one that it can have."""
    kept = int(array_of(stored, name, (), np.dtype(np.int32)))
    largest = next(iter(part.value.values()))["a"].shape[-1]
    if not 0 < kept <= largest:
        raise Refused(f"'{name}' is {kept}: it must be in 1 to {largest}")
    return kept


def _padded(part: Part, cut: dict[str, Any], kept: int) -> Part:
    """The part again, with zeros beyond the rank that travelled."""

    def pad(like: Any, x: np.ndarray) -> np.ndarray:
        new = np.zeros(like.shape, like.dtype)
        new[tuple(slice(n) for n in x.shape)] = x
        return new

    rank = next(iter(part.value.values()))["a"].shape[-1]
    value = jax.tree.map(pad, part.value, cut["value"])
    numbers: Any = np.int32(kept), np.int32(rank)
    return Part(value, *numbers)
