"""LoRA on Flax NNX models: a second, thin front to the same adapters.

An NNX model is split once into what it is and its state. The state becomes a base as
Linen models have it, by path, and every call merges a model out of a base again, puts a
layer with factors in the place of each adapted layer, and calls it. So a base stays
unbatched, and what a call changes in the model is forgotten.

State that is neither parameters nor batch statistics, such as caches, stays as it is in
the model. Models are called in evaluation mode: dropout and updates of statistics are
off, as in a Linen model that is applied without random keys. A call with `rngs={name:
key}` has dropout, and its random streams begin with those keys; statistics stay frozen.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from potara_jax.adapters.layers import INT8_SCALE, Array, Layer, added, kind_of

Path = tuple[Any, ...]
Factors = Mapping[str, Mapping[str, Array]]
Observe = Callable[[str, Layer, nn.Module, Array], None]

_COLLECTIONS = {nnx.Param: "params", nnx.BatchStat: "batch_stats"}


def variables(model: nnx.Module) -> dict[str, Any]:
    """A base: `{"params": ...}`, and `batch_stats` where there are any, by path."""
    collections: dict[str, dict[str, Array]] = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if collection := _collection(variable):
            collections.setdefault(collection, {})[_joined(path)] = variable.get_value()
    return {name: unflatten_dict(flat, sep="/") for name, flat in collections.items()}


def trace(
    model: nnx.Module,
) -> tuple[dict[str, tuple[nn.Module, Layer]], dict[str, Any]]:
    """The adaptable layers, described as Linen has them, and all parameters by path."""
    params: Any = flatten_dict(variables(model)["params"], sep="/")
    modules = {}
    for path, layer in nnx.iter_modules(model):
        linen = as_linen(layer)
        if linen is not None and (kind := kind_of(linen)):
            modules[_joined(path)] = linen, kind
    return modules, params


def bind(
    model: nnx.Module,
    *,
    scale: float,
    observe: Observe | None = None,
    watch: Mapping[str, Callable[[Array], object]] = MappingProxyType({}),
) -> Callable[..., Any]:
    """`apply(variables, factors, *inputs, rngs=None, **kwargs)` of the adapted model.

    `rngs` are keys by the names of the model's random streams; a stream of another name
    begins with the first of them. Streams of different places draw apart. A model that
    takes `rngs` is given them as `nnx.Rngs`, too.

    Args:
      model: its state is replaced by the `variables` of a call.
      scale: the factor of every delta.
      observe: called with every adapted layer's path, kind, description and input.
      watch: functions that are called with what the modules of some paths read.

    Raises:
      ValueError: when called, where `variables` are not those of the model, or `rngs`
        is no dictionary of keys.
    """
    evaluated = nnx.clone(model)
    evaluated.eval()
    graph, state = nnx.split(evaluated)
    flat = nnx.to_flat_state(state)
    paths = {_joined(path): path for path, _ in nnx.iter_modules(evaluated)}
    takes_rngs = "rngs" in inspect.signature(type(model).__call__).parameters

    def apply(
        variables: Mapping[str, Any],
        factors: Factors,
        *inputs: Any,
        rngs: Mapping[str, Array] | None = None,
        **kwargs: Any,
    ) -> Any:
        values: dict[str, Any] = {
            name: flatten_dict(dict(variables.get(name, {})), sep="/")
            for name in _COLLECTIONS.values()
        }
        filled = [(path, _filled(path, variable, values)) for path, variable in flat]
        if rngs is not None:
            _check_rngs(rngs)
            filled = [(path, _begun(path, each, rngs)) for path, each in filled]
        called: Any = nnx.merge(graph, nnx.from_flat_state(filled))
        if rngs is not None:
            called.set_attributes(deterministic=False, raise_if_not_found=False)
            kwargs |= {"rngs": nnx.Rngs(**rngs)} if takes_rngs else {}
        codes = _int8_scales(values["params"])
        for path in {**factors, **codes}:
            adapted = _Adapted(
                module_at(called, paths[path]),
                factors.get(path, {}),
                scale=scale,
                path=path,
                int8_scale=codes.get(path),
                observe=observe,
            )
            _put(called, paths[path], adapted)
        for path in watch.keys() & paths.keys():
            module = module_at(called, paths[path])
            _put(called, paths[path], _Watched(module, watch[path]))
        return called(*inputs, **kwargs)

    return apply


def _joined(path: Path) -> str:
    return "/".join(map(str, path))


def _collection(variable: Any) -> str | None:
    kinds = (name for kind, name in _COLLECTIONS.items() if isinstance(variable, kind))
    return next(kinds, None)


def _filled(path: Path, variable: Any, values: Mapping[str, Any]) -> Any:
    """A variable with its value in the base, if it is of those that a base has."""
    collection = _collection(variable)
    if collection is None:
        return variable
    value = values[collection].get(_joined(path))
    shape = variable.get_value().shape
    if value is None or value.shape != shape:
        given = "nothing" if value is None else f"{list(value.shape)}"
        raise ValueError(
            f"the base has {given} at '{_joined(path)}' in {collection}, where the "
            f"model has {list(shape)}: make it by variables(model)"
        )
    return variable.replace(value)


def _check_rngs(rngs: Any) -> None:
    """Raise `ValueError` for what is no dictionary from names of streams to keys."""
    if not isinstance(rngs, dict) or not rngs:
        empty = isinstance(rngs, dict)
        kind = "an empty dictionary" if empty else f"a {type(rngs).__name__}"
        raise ValueError(
            f'rngs is {kind}: it must be a dictionary of keys, such as {{"dropout": '
            "key}"
        )


def _begun(path: Path, variable: Any, rngs: Mapping[str, Array]) -> Any:
    """A random stream's variable at its beginning; any other as it is."""
    if isinstance(variable, nnx.RngCount):
        return variable.replace(jnp.zeros_like(variable.get_value()))
    if not isinstance(variable, nnx.RngKey):
        return variable
    key = rngs.get(variable.get_metadata("tag"), next(iter(rngs.values())))
    if key.dtype == jnp.uint32:
        key = jax.random.wrap_key_data(key)
    of_place = jax.random.fold_in(key, zlib.crc32(_joined(path).encode()))
    shape = variable.get_value().shape
    return variable.replace(jax.random.split(of_place, shape) if shape else of_place)


def _int8_scales(params: Mapping[str, Array]) -> dict[str, Array]:
    """The units of the kernels that are in int8, by module path."""
    ends = f"/{INT8_SCALE}"
    named = {path: x for path, x in params.items() if path.endswith(ends)}
    return {path.removesuffix(ends): x for path, x in named.items()}


# --- Adapted layers ------------------------------------------------------------------


class _Adapted(nnx.Module):
    """A layer with factors, or with the units of its kernel in int8, in its place."""

    def __init__(
        self,
        layer: nnx.Module,
        entry: Mapping[str, Array],
        *,
        scale: float,
        path: str,
        int8_scale: Array | None,
        observe: Observe | None,
    ) -> None:
        self.layer = layer
        self.factors = nnx.Dict({k: nnx.Param(value) for k, value in entry.items()})
        self.int8_scale = None if int8_scale is None else nnx.Param(int8_scale)
        self.scale, self.path, self.observe = scale, path, observe

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Array:
        layer: Any = self.layer
        y: Array = layer(x, *args, **kwargs)
        if self.int8_scale is not None:
            y = y * self.int8_scale.get_value().astype(y.dtype)
        factors = {k: v.get_value().astype(y.dtype) for k, v in self.factors.items()}
        if not factors:
            return y
        linen = as_linen(layer)
        kind = None if linen is None else kind_of(linen)
        assert linen is not None and kind is not None, "only such layers are adapted"
        if self.observe is not None:
            self.observe(self.path, kind, linen, x)
        return y + self.scale * added(kind, linen, x.astype(y.dtype), factors, y.shape)


class _Watched(nnx.Module):
    """A module, and a function of what it reads, in its place."""

    def __init__(self, module: nnx.Module, see: Callable[[Array], object]) -> None:
        self.module, self.see = module, see

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Any:
        self.see(x)
        module: Any = self.module
        return module(x, *args, **kwargs)


def module_at(model: nnx.Module, path: Path) -> Any:
    """What a model has at a path.

    Args:
      model: an NNX model.
      path: keys and indices from it.

    Raises:
      AttributeError: it has nothing there.
    """
    place: Any = model
    for key in path:
        place = place[key] if isinstance(key, int) else getattr(place, key)
    return place


def _put(model: nnx.Module, path: Path, module: nnx.Module) -> None:
    owner, name = module_at(model, path[:-1]), path[-1]
    if isinstance(name, int):
        owner[name] = module
    else:
        setattr(owner, name, module)


def as_linen(layer: Any) -> nn.Module | None:
    """The Linen module that computes what an NNX layer does."""
    if isinstance(layer, nnx.Linear):
        return nn.Dense(layer.out_features)
    if isinstance(layer, nnx.LinearGeneral):
        return nn.DenseGeneral(
            layer.out_features, axis=layer.axis, batch_dims=tuple(layer.batch_axis)
        )
    if isinstance(layer, nnx.Einsum):
        return nn.Einsum(layer.kernel_shape, layer.einsum_str or None)
    if isinstance(layer, nnx.Conv):
        return nn.Conv(
            layer.out_features,
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            input_dilation=layer.input_dilation,
            kernel_dilation=layer.kernel_dilation,
            feature_group_count=layer.feature_group_count,
            mask=layer.mask,
            dtype=layer.dtype,
            precision=layer.precision,
            conv_general_dilated=layer.conv_general_dilated,
        )
    return None
