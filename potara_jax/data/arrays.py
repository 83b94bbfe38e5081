"""Ragged examples, one pair of arrays each, as one pool of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Examples = tuple[Any, Any]  # inputs and labels: arrays, or pytrees of arrays
_FIELDS = "inputs", "labels"
_NO_NUMBERS = "OSUMm"  # NumPy's kinds of arrays that a device cannot hold


def pooled(
    examples: Sequence[Examples], *, names: Sequence[str]
) -> tuple[Examples, list[np.ndarray]]:
    """Ragged examples as one pool, and each pair's indices into it.

    Args:
      examples: pairs `(inputs, labels)` of arrays or pytrees of arrays, of which only
        the leading axis may differ.
      names: each pair's name in error messages.

    Returns:
      The pool's `(inputs, labels)`, and an array of indices for each pair.

    Raises:
      ValueError: a pair is empty, does not fit the first one, or has a number that is
        not finite or that the device's type cannot hold; names the pair.
    """
    if not examples:
        raise ValueError("there are no examples: give at least one pair of arrays")
    pairs = [_checked(*pair) for pair in zip(examples, names, strict=True)]
    for pair, name in zip(pairs, names, strict=True):
        _check_alike(pair, pairs[0], name, names[0])
    ends = np.cumsum([_lengths(pair)[0] for pair in pairs])
    pool = jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)), *pairs)
    return pool, np.split(np.arange(ends[-1]), ends[:-1])


def _checked(examples: Examples, name: str) -> Examples:
    """A pair's arrays on the host, all of one length, at least 1."""
    if not isinstance(examples, tuple | list) or len(examples) != 2:
        raise ValueError(f"{name} must be a pair of arrays, (inputs, labels)")
    inputs, labels = jax.tree.map(np.asarray, tuple(examples))
    for field, tree in zip(_FIELDS, (inputs, labels), strict=True):
        for leaf in jax.tree.leaves(tree):
            _check_array(leaf, name)
            _check_numbers(leaf, f"{name} has {field} of")
    lengths = _lengths((inputs, labels))
    if len(lengths) != 1:
        listed = " and ".join(map(str, lengths)) or "none"
        raise ValueError(f"{name} needs arrays of one length, not {listed}")
    if lengths == [0]:
        raise ValueError(f"{name} has no examples")
    return inputs, labels


def _check_array(leaf: np.ndarray, name: str) -> None:
    if leaf.ndim == 0 or leaf.dtype.kind in _NO_NUMBERS:
        raise ValueError(
            f"{name} has {leaf.dtype}{list(leaf.shape)} for an array of numbers "
            "with a leading axis of examples; turn lists into arrays"
        )


def _check_numbers(leaf: np.ndarray, start: str) -> None:
    """Raise `ValueError` for the first number that is lost on a device."""
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        held = leaf.astype(dtype)
        if jnp.issubdtype(dtype, jnp.inexact):
            lost = ~np.isfinite(held)
        else:
            lost = held != leaf
    if lost.any():
        place = tuple(np.argwhere(lost)[0].tolist())
        raise ValueError(
            f"{start} {leaf[place]} in its example {place[0]}: numbers must be finite "
            f"and fit {dtype}; replace it, or leave the example out"
        )


def _lengths(examples: Examples) -> list[int]:
    return sorted({len(leaf) for leaf in jax.tree.leaves(examples)})


def _check_alike(pair: Examples, first: Examples, name: str, first_name: str) -> None:
    for field, value, expected in zip(_FIELDS, pair, first, strict=True):
        if _example_of(value) != _example_of(expected):
            raise ValueError(
                f"{name} has {field} {_example_of(value)}, but {first_name} has "
                f"{_example_of(expected)}: all need the same shapes and types"
            )


def _example_of(tree: Any) -> str:
    """The shapes and types of one example, as text."""
    kind = lambda x: f"{jax.dtypes.canonicalize_dtype(x.dtype)}{list(x.shape[1:])}"
    return str(jax.tree.map(kind, tree)).replace("'", "")
