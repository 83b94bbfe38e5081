"""Merging: one adapter out of several, in a space, with given weights.

`merge` is the one way to use a `Merge`. Weights `w_i` are scalars (one a client),
dictionaries by module path, or pytrees like the coordinates.
Everything is for one client; `jax.vmap` gives the client axis. Letters: `n` adapters,
`D` inputs, `K` outputs.

A scalar weight is of the delta, in every space. In `factor` and `aligned`, where the
delta is a product `a b`, the factors are therefore averaged with the shares `w_i / W`,
`W = sum_i w_i`, and `b` is multiplied by `W`; negative weights have no meaning there
and are refused. A pytree like the coordinates weighs the coordinates as they are.

Modules that are trained whole are averaged with the weights, whatever the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters import algebra
from potara_jax.adapters.lora import Adapter, Array, Entry, is_factors
from potara_jax.merging import spaces
from potara_jax.merging.interface import ANY, Merge, Place, Weight


def merge(
    adapters: Sequence[Adapter],
    weights: Sequence[Weight] | None = None,
    *,
    method: Merge | None = None,
    space: str | None = None,
    rank: int | None = None,
    key: Array | None = None,
) -> Adapter:
    """Merge the adapters of one client into one, with plain factors.

    Args:
      adapters: two or more (one is allowed), of the same modules.
      weights: one an adapter; default `1/n` each. See the module.
      method: a merge; default `linear()`.
      space: where to merge; default the first of `method.spaces`.
      rank: truncate every merged delta to this rank (Eckart-Young); default: keep the
        exact rank, `R` in `factor` and `aligned`, the sum of the ranks otherwise.
      key: consumed by methods that draw at random.

    Raises:
      ValueError: a space that does not suit the method or the ranks, adapters of
        different modules, a rank that is too high, or a missing key.

    Examples:
      >>> one = {"query": {"a": jnp.ones((2, 1)), "b": jnp.ones((1, 2))}}
      >>> two = {"query": {"a": jnp.ones((2, 1)), "b": 3 * jnp.ones((1, 2))}}
      >>> merged = merge([one, two], [0.5, 0.5])  # rank 2, the mean of both deltas
      >>> algebra.delta(merged["query"]).tolist()
      [[2.0, 2.0], [2.0, 2.0]]
    """
    method = method or AVERAGE
    if not isinstance(method, Merge):
        raise ValueError(f"method is {method!r:.40}: it must be one such as linear()")
    space = checked_space(method, space)
    _check(adapters, weights, method, key)
    count = len(adapters)
    weights = [1 / count] * count if weights is None else weights
    by_path = [per_module(w, adapters[0]) for w in weights]
    coordinates = spaces.SPACES[space].coordinates(adapters)
    theta = _combined(coordinates, by_path, method, space, adapters[0], key)
    merged = spaces.plain(coordinates.assemble(theta))
    return merged if rank is None else truncate(merged, rank=rank)


def pair(weight: Weight) -> tuple[Weight, Weight]:
    """The weights `(w, 1 - w)` of a federated and a local adapter.

    Examples:
      >>> pair(0.25)
      (0.25, 0.75)
    """
    return weight, jax.tree.map(lambda w: 1 - w, weight)


def truncate(adapter: Adapter, *, rank: int) -> Adapter:
    """Replace every delta by the nearest of a rank; keep whole modules."""
    whole = {path: entry for path, entry in adapter.items() if not is_factors(entry)}
    return whole | algebra.map_factors(
        lambda entry: algebra.truncate(entry, rank=rank), adapter
    )


def per_module(weight: Weight, adapter: Adapter) -> Mapping[str, Weight]:
    """The weight of every module, from any of the forms that `merge` accepts."""
    return weight if isinstance(weight, Mapping) else dict.fromkeys(adapter, weight)


# --- What merges share ---------------------------------------------------------------


def weighted_sum(
    values: Sequence[Array], weights: Sequence[Any], place: Place | None = None
) -> Array:
    """The sum `sum_i w_i x_i`."""
    del place
    total: Any = sum(w * x for w, x in zip(weights, values, strict=True))
    return total


AVERAGE = Merge("linear", weighted_sum, ANY)


def check_finite(name: str, value: float) -> None:
    """Raise `ValueError` if an option is not a finite number."""
    if not abs(value) < float("inf"):
        raise ValueError(f"{name} is {value}: it must be a finite number")


def check_share(name: str, value: float) -> None:
    """Raise `ValueError` if an option is not in (0, 1]."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} is {value}: it must be above 0 and at most 1")


def certainly(condition: Any) -> bool:
    """Whether a condition holds and is known before the program runs."""
    return isinstance(condition, bool | np.bool_) and bool(condition)


# --- Checks --------------------------------------------------------------------------


def checked_space(method: Merge, space: str | None) -> str:
    """The space to merge in.

    Args:
      method: the merge.
      space: what the user has chosen, or None for the method's first.

    Raises:
      ValueError: the method does not merge in that space.
    """
    if space is None:
        return method.spaces[0]
    if space not in method.spaces:
        known = ", ".join(method.spaces)
        raise ValueError(
            f"'{method.name}' does not merge in '{space}' space; use one of: {known}"
        )
    return space


def _check(
    adapters: Sequence[Adapter],
    weights: Sequence[Weight] | None,
    method: Merge,
    key: Array | None,
) -> None:
    if not adapters:
        raise ValueError("there is no adapter to merge")
    if weights is not None and not isinstance(weights, Sequence):
        raise ValueError(f"weights are a list with one an adapter, not {weights!r:.40}")
    if weights is not None and len(weights) != len(adapters):
        raise ValueError(f"{len(adapters)} adapters need as many weights")
    for adapter in adapters[1:]:
        _check_modules(adapters[0], adapter)
    for weight in weights or ():
        _check_weight(weight, adapters[0])
    if method.random and key is None:
        raise ValueError(f"'{method.name}' draws at random: give it a key")


def _check_modules(first: Adapter, second: Adapter) -> None:
    """Raise `ValueError` where two adapters' modules differ."""
    single = sorted(set(first) ^ set(second))
    if single:
        raise ValueError(f"only one of two adapters has '{single[0]}'")
    for path in second:
        _check_entries(path, first[path], second[path])


def _check_entries(path: str, first: Entry, second: Entry) -> None:
    """Raise `ValueError` where two entries differ in kind or size."""
    if is_factors(first) != is_factors(second) or _size(first) != _size(second):
        raise ValueError(
            f"two adapters have '{path}' of {_size(first)} and {_size(second)}"
        )


def _size(entry: Entry) -> Any:
    """The sides of a delta, or the shapes of a whole module's arrays."""
    if is_factors(entry):
        return (*entry["a"].shape[:-1], entry["b"].shape[-1])
    return jax.tree.map(jnp.shape, entry)


def _check_weight(weight: Weight, adapter: Adapter) -> None:
    """Raise `ValueError` for a weight of no form that `merge` accepts."""
    if isinstance(weight, Mapping):
        missing = sorted(set(adapter) - set(weight))
        if missing:
            raise ValueError(f"the weights have none for '{missing[0]}'")
    elif jnp.ndim(weight) > 0:
        raise ValueError(
            f"a weight of shape {jnp.shape(weight)}: one is a scalar; use jax.vmap "
            "over clients"
        )


# --- Module by module ----------------------------------------------------------------


def _combined(
    coordinates: spaces.Coordinates,
    weights: Sequence[Mapping[str, Weight]],
    method: Merge,
    space: str,
    adapter: Adapter,
    key: Array | None,
) -> Adapter:
    """Every module's arrays combined; whole modules by their weighted sum."""
    combined = {}
    for number, path in enumerate(sorted(adapter)):
        entries = [theta[path] for theta in coordinates.thetas]
        of_module = [w[path] for w in weights]
        place = Place(path, None if key is None else jax.random.fold_in(key, number))
        if is_factors(adapter[path]):
            used = None if coordinates.used is None else coordinates.used[path]
            combined[path] = _factors(entries, of_module, method, space, place, used)
        else:
            combined[path] = _module(entries, of_module, AVERAGE, place)
    return {path: combined[path] for path in adapter}


def _factors(
    entries: Sequence[Entry],
    weights: Sequence[Weight],
    method: Merge,
    space: str,
    place: Place,
    used: Entry | None,
) -> Entry:
    """The coordinates of an adapted module, with the delta at its full size."""
    size: Any = method.scale * (len(entries) if method.adds else 1)
    bilinear = spaces.SPACES[space].bilinear
    if bilinear and not any(isinstance(w, Mapping) for w in weights):
        weights, total = _shares(weights, space)
        size = size if method.relative else size * total
    combined = _module(entries, weights, method, place, used)
    scaled = ("b",) if bilinear else tuple(combined)
    return combined | {name: size * combined[name] for name in scaled}


def _shares(weights: Sequence[Any], space: str) -> tuple[list[Any], Any]:
    """The weights over their sum, and the sum."""
    if negative := [w for w in weights if certainly(w < 0)]:
        raise ValueError(
            f"a weight of {negative[0]:g} cannot scale the delta in '{space}' space, "
            "which merges a and b by themselves; use delta, core or knots"
        )
    total: Any = sum(weights)
    if certainly(total == 0):
        return list(weights), total
    safe = total if certainly(total != 0) else jnp.where(total != 0, total, 1)
    return [w / safe for w in weights], total


def _module(
    entries: Sequence[Entry],
    weights: Sequence[Weight],
    method: Merge,
    place: Place,
    used: Entry | None = None,
) -> Entry:
    for weight in weights:
        _check_coordinates(place.path, weight, entries[0])

    def one(number: int, name: str) -> Array:
        of_array = [w[name] if isinstance(w, Mapping) else w for w in weights]
        key = None if place.key is None else jax.random.fold_in(place.key, number)
        at = Place(place.path, key, None if used is None else used[name])
        return method.combine([entry[name] for entry in entries], of_array, at)

    return {name: one(i, name) for i, name in enumerate(sorted(entries[0]))}


def _check_coordinates(path: str, weight: Weight, entry: Entry) -> None:
    """Raise `ValueError` where weights of coordinates are of another space."""
    if isinstance(weight, Mapping) and set(weight) != set(entry):
        raise ValueError(
            f"'{path}' has a weight for each of {sorted(weight)}, where its "
            f"coordinates are {sorted(entry)}: merge in the space that the "
            "weights were made in ('core', for Fisher's)"
        )
