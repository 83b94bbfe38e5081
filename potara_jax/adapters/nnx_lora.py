"""Adapters of other NNX libraries: `flax.nnx.LoRA`, and Qwix, which Tunix uses.

Both keep the factors in the model, beside the weight that they adapt:

    nnx.LoRA         <module>/lora_a           [..., D, R]
                     <module>/lora_b           [..., R, K]
    nnx.LoRALinear   <module>/lora/lora_a, <module>/lora/lora_b
    Qwix, Tunix      <module>/<weight>_lora_a  [..., *inputs, R]
                     <module>/<weight>_lora_b  [..., R, *outputs]

Dimension letters: `D` inputs, `K` outputs, `R` rank; `...` are leading axes of layers
that the model scans over. Qwix flattens the inputs and outputs of a `LinearGeneral` and
keeps the axes of an `Einsum` and of a convolution. Only shapes differ from an
`Adapter`, so that conversions are exact.

The scale is not part of the factors: it is 1 in Flax, and `alpha / R` of the rule in
Qwix. Pass it to `lora.bind`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from potara_jax.adapters import of_nnx
from potara_jax.adapters.layers import Array, Shape, kernel_rank, kind_of
from potara_jax.adapters.lora import Adapter, Entry
from potara_jax.adapters.of_nnx import Path

Source = nnx.Module | nnx.State | Mapping[str, Any]

_FACTOR = re.compile(r"((?P<weight>.+)_)?lora_(?P<side>[ab])")


class _Module(NamedTuple):
    """Where one module's factors and its weight are."""

    path: str
    a: Path
    b: Path
    weight: Path


# --- The two conversions -------------------------------------------------------------


def from_nnx_lora(source: Source) -> Adapter:
    """The adapter of a model that `nnx.LoRA`, Qwix or Tunix has adapted, in float32.

    A module's path is that of the layer without LoRA: `hidden` for a layer `hidden`
    that `nnx.LoRA` wraps or that is an `nnx.LoRALinear`.

    Args:
      source: the model, or the state of its factors alone, such as `nnx.state(model,
        nnx.LoRAParam)` or the dictionary that a checkpoint holds. Only a model's
        factors are compared with the layers that they adapt.

    Raises:
      ValueError: a parameter is not one of a pair of factors, or a pair is not that of
        one matrix: shapes that do not fit, several weights in one module, batch axes,
        groups. The message names the module.

    Examples:
      >>> layer = nnx.LoRALinear(4, 3, lora_rank=2, rngs=nnx.Rngs(0))
      >>> adapter = from_nnx_lora(nnx.Sequential(layer))
      >>> {path: entry["a"].shape for path, entry in adapter.items()}
      {'layers/0': (4, 2)}
    """
    leaves = _leaves(source)
    modules = _modules(source, leaves)
    return {module.path: _entry(module, leaves) for module in modules}


def to_nnx_lora(adapter: Adapter, like: Source) -> Any:
    """The state of an adapter's factors in the form of another library.

    `nnx.update(model, to_nnx_lora(adapter, model))` puts them into a model. The inverse
    of `from_nnx_lora`, to the bit where the model's factors are in float32.

    Args:
      adapter: plain factors of exactly the modules and ranks of `like`.
      like: what `from_nnx_lora` takes; gives names, shapes and dtypes.

    Returns:
      An `nnx.State`, or a dictionary where `like` is one that is no `nnx.State`.

    Raises:
      ValueError: as `from_nnx_lora`; or the adapter has other modules, shapes or
        arrays. The message names the module.
    """
    leaves = _leaves(like)
    modules = _modules(like, leaves)
    _check_same_modules(adapter, [module.path for module in modules])
    changed: dict[Path, Any] = {}
    for module in modules:
        _check_same_shapes(module.path, adapter[module.path], _entry(module, leaves))
        for side, place in (("a", module.a), ("b", module.b)):
            changed[place] = _stored(adapter[module.path][side], leaves[place])
    if isinstance(like, nnx.Module | nnx.State):
        return nnx.from_flat_state(changed)
    return unflatten_dict(changed)


def _entry(module: _Module, leaves: Mapping[Path, Any]) -> Entry:
    a, b = _value(leaves[module.a]), _value(leaves[module.b])
    weight = leaves.get(module.weight)
    kernel = None if weight is None else _value(weight).shape
    stack = _stack(module.path, a.shape, b.shape, kernel)
    lead, rank = a.shape[:stack], a.shape[-1]
    shapes = {"a": (*lead, -1, rank), "b": (*lead, rank, -1)}
    return {
        side: jnp.asarray(value, jnp.float32).reshape(shapes[side])
        for side, value in (("a", a), ("b", b))
    }


def _stored(value: Array, leaf: Any) -> Any:
    before = _value(leaf)
    changed = jnp.asarray(value, before.dtype).reshape(before.shape)
    return leaf.replace(changed) if isinstance(leaf, nnx.Variable) else changed


def _value(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


# --- Which leaves are the factors of which module ------------------------------------


def _leaves(source: Source) -> dict[Path, Any]:
    state = nnx.state(source) if isinstance(source, nnx.Module) else source
    if isinstance(state, nnx.State):
        return dict(nnx.to_flat_state(state))
    flat: Any = flatten_dict(dict(state))
    return flat


def _modules(source: Source, leaves: Mapping[Path, Any]) -> list[_Module]:
    """The modules that have factors; those of a model are also checked as layers."""
    model = source if isinstance(source, nnx.Module) else None
    places: dict[str, dict[str, Path]] = {}
    for place, leaf in leaves.items():
        match = _FACTOR.fullmatch(str(place[-1]))
        if match is not None:
            _add(places, place, match["side"])
        elif model is None or isinstance(leaf, nnx.LoRAParam):
            raise ValueError(
                f"'{'/'.join(map(str, place))}' is no lora_a or lora_b: pass the "
                "model, or nnx.state(model, nnx.LoRAParam), which has its factors alone"
            )
    if not places:
        raise ValueError("no parameter is a lora_a or lora_b: adapt the model first")
    return [_module(model, path, sides) for path, sides in places.items()]


def _add(places: dict[str, dict[str, Path]], place: Path, side: str) -> None:
    path = _path(place)
    other = places.setdefault(path, {}).setdefault(side, place)
    if other != place:
        raise ValueError(
            f"'{path}' has factors of two weights, '{other[-1]}' and '{place[-1]}': an "
            "adapter has one pair for a module"
        )


def _path(place: Path) -> str:
    """The adapted module of a factor; an `nnx.LoRALinear` has its own in `lora`."""
    owner = place[:-2] if place[-2:-1] == ("lora",) else place[:-1]
    return "/".join(map(str, owner))


def _module(model: nnx.Module | None, path: str, sides: dict[str, Path]) -> _Module:
    if len(sides) == 1:
        (place,) = sides.values()
        raise ValueError(f"'{path}' has '{place[-1]}' alone, without the other factor")
    place = sides["a"]
    weight = str(place[-1]).removesuffix("lora_a").rstrip("_")
    if weight:
        layer = (*place[:-1], weight)
    elif place[-2:-1] == ("lora",):
        layer = (*place[:-2], "kernel")
    else:
        layer = (*place[:-1], "base_module", "kernel")
    if model is not None:
        _check_layer(model, path, layer)
    return _Module(path, sides["a"], sides["b"], layer)


def _check_layer(model: nnx.Module, path: str, weight: Path) -> None:
    """Raise `ValueError` for a layer whose weight is not one matrix."""
    try:
        layer = of_nnx.module_at(model, weight[:-1])
    except AttributeError:  # factors beside no weight
        return
    equation = getattr(layer, f"{weight[-1]}_lora_einsum_str", None)  # set by Qwix
    linen = of_nnx.as_linen(layer)
    reason = _batched(equation) if equation else None
    if reason is None and linen is not None and (kind := kind_of(linen)):
        try:
            kind.axes(linen, kernel_rank(linen))
        except ValueError as error:
            reason = str(error)
    if reason:
        raise ValueError(f"'{path}' is {reason}, whose factors are not of one matrix")


def _batched(equation: str) -> str | None:
    """Says that Qwix's `x,a,b->y` has axes of `a` that are not summed, if it has."""
    operands, output = equation.replace(" ", "").split("->")
    _, a, _ = operands.split(",")
    return f"an Einsum '{equation}' with batch axes" if set(a) & set(output) else None


# --- Shapes --------------------------------------------------------------------------


def _stack(path: str, a: Shape, b: Shape, kernel: Shape | None) -> int:
    """The number of leading axes that both factors have; raises `ValueError`."""
    fitting = [
        n
        for n in range(min(len(a) - 1, len(b)))
        if a[:n] == b[:n]
        and b[n] == a[-1]
        and (kernel is None or _size(a, b, n) == math.prod(kernel))
    ]
    if not fitting:
        weight = "" if kernel is None else f", and a weight {_listed(kernel)}"
        raise ValueError(
            f"'{path}' has factors {_listed(a)} and {_listed(b)}{weight}, which do not "
            "fit: lora_a must be [*inputs, rank] and lora_b [rank, *outputs]"
        )
    if len(fitting) > 1:
        raise ValueError(
            f"'{path}' has factors {_listed(a)} and {_listed(b)}, of one layer or of "
            "layers in a stack: pass the model, whose weights tell"
        )
    return fitting[0]


def _size(a: Shape, b: Shape, stack: int) -> int:
    """The number of entries of the weight that factors belong to."""
    return math.prod(a[:-1]) * math.prod(b[stack + 1 :])


def _listed(shape: Shape) -> str:
    return str(list(shape))


def _check_same_modules(adapter: Adapter, expected: list[str]) -> None:
    for path in [*adapter, *expected]:
        if path not in expected:
            raise ValueError(
                f"the adapter's '{path}' has no factors in the model: leave it out, or "
                f"adapt it; those that have are {', '.join(expected[:3])}, ..."
            )
        if path not in adapter:
            raise ValueError(
                f"the model's '{path}' has factors, but none in the adapter: add them, "
                "with b = 0 for no change"
            )


def _check_same_shapes(path: str, entry: Entry, expected: Entry) -> None:
    shapes, wanted = (
        {name: tuple(value.shape) for name, value in sorted(one.items())}
        for one in (entry, expected)
    )
    if shapes != wanted:
        raise ValueError(
            f"'{path}' has {shapes} in the adapter, but must have {wanted}: "
            "`algebra.plain` multiplies a core in, `algebra.truncate` lowers the rank"
        )
