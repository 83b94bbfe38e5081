"""LoRA on any Flax model, Linen or NNX, without touching the model.

Dimension letters: `D` inputs, `K` outputs, `R` rank; `...` are the leading axes of
layers that the model scans over (`flax.linen.scan`).

An *adapter* is a flat dictionary from module path to that module's arrays. A module
that is adapted holds factors `{"a": [..., D, R], "b": [..., R, K]}` and computes

    y = x W + s (x a) b,    s = alpha / R

(Hu et al. 2021, arXiv 2106.09685, eq. 3). A third array `m` `[..., R, R']` between the
two, `s x a m b`, is a *core* (see `potara_jax.merging.spaces`); *gates* `g` `[..., D,
G]` weigh `G` equal parts of the rank, token by token, by `softmax(x g)`. A module that
is trained whole, such as a classification head, holds its parameters under their own
names and replaces the base's. Both kinds travel, train and merge together.

The base is never changed: `bind` intercepts the calls of the adapted layers (see
`of_nnx` for NNX), so the base product stays one matrix product for all clients under
`jax.vmap`, and `W + s a b` is formed only by `fold`.

A *base* is a model's parameters, or all its variables, such as `{"params": ...,
"batch_stats": ...}`, recognised by the key `params`. Collections beside the parameters
are shared by all clients, read, and never changed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from potara_jax.adapters import of_nnx
from potara_jax.adapters.layers import (
    INT8_SCALE,
    Array,
    Layer,
    Site,
    added,
    kind_of,
    site_of,
)
from potara_jax.adapters.tracing import joined, parted, traced_once

Params = Mapping[str, Any]
Entry = dict[str, Array]
Adapter = dict[str, Entry]
Apply = Callable[..., Array]
Model = nn.Module | nnx.Module
Interceptor = Callable[..., Any]  # as `flax.linen.intercept_methods` takes it

_PARAMS, _LORA = "params", "lora"
_SCALE = _PARAMS, INT8_SCALE


def is_factors(entry: Entry) -> bool:
    """Whether a module's entry holds low-rank factors (else: whole parameters)."""
    return "a" in entry


def _path(module: nn.Module) -> str:
    return "/".join(module.path)


# --- Sites, initial factors ----------------------------------------------------------


def find_sites(
    model: Model, *inputs: Any, targets: str | Sequence[str]
) -> dict[str, Site]:
    """The kernels of `model` that `targets` name, by module path.

    Args:
      model: any Linen or NNX model.
      inputs: what a Linen model is called with; arrays may be `jax.ShapeDtypeStruct`s,
        as nothing is computed. What is no array, such as a flag, is passed on as it is.
      targets: one target or several, each a regular expression that must match the end
        of a path at a path boundary: `query` and `attention/(query|value)` both match
        `block_0/attention/query`.

    Raises:
      ValueError: where a target is no regular expression, matches no adaptable module,
        or matches a layer whose kernel has batch axes or groups.

    Examples:
      >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
      >>> sites = find_sites(model, jnp.zeros((1, 4)), targets="layers_[0-9]")
      >>> {path: site.factor_shape for path, site in sites.items()}
      {'layers_0': ((), 4, 8), 'layers_2': ((), 8, 3)}
    """
    targets = (targets,) if isinstance(targets, str) else targets
    if isinstance(model, nnx.Module):
        modules, params = of_nnx.trace(model)
    else:
        modules, params = _trace(model, *inputs)
    missing = [t for t in targets if not any(_matches(t, path) for path in modules)]
    if missing or not targets:
        raise ValueError(
            f"target {', '.join(map(repr, missing)) or '(none given)'} matches no "
            f"module; the adaptable modules are: {_summary(modules)}"
        )
    chosen = [path for path in modules if any(_matches(t, path) for t in targets)]
    return {path: site_of(path, *modules[path], params) for path in chosen}


def _trace(
    model: nn.Module, *inputs: Any
) -> tuple[dict[str, tuple[nn.Module, Layer]], dict[str, Any]]:
    """The adaptable modules and the shapes of all parameters, by path."""
    modules: dict[str, tuple[nn.Module, Layer]] = {}
    arrays, rest = parted(inputs)

    def record(
        next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any
    ) -> Any:
        module, layer = context.module, kind_of(context.module)
        if context.method_name == "__call__" and layer:
            modules.setdefault(_path(module), (module.clone(parent=None), layer))
        return next_fun(*args, **kwargs)

    def initial(key: Array, arrays: dict[int, Array]) -> Params:
        return model.init(key, *joined(arrays, rest))

    with nn.intercept_methods(record):
        variables = jax.eval_shape(initial, jax.random.key(0), arrays)
    return modules, flatten_dict(dict(variables[_PARAMS]), sep="/")


def _matches(target: str, path: str) -> bool:
    try:
        return re.search(rf"(^|/)({target})$", path) is not None
    except re.error as error:
        raise ValueError(
            f"target {target!r} is no regular expression: {error.msg}"
        ) from None


def _summary(paths: Iterable[str]) -> str:
    """Module paths with their indices joined: `block_*/attention/query`."""
    return ", ".join(dict.fromkeys(re.sub(r"\d+", "*", path) for path in paths))


def init(key: Array, sites: Mapping[str, Site], *, rank: int) -> Adapter:
    """Initial factors in float32: `a` uniform in +-1/sqrt(D), `b` zero (Hu et al.).

    The uniform bound is Kaiming's with slope sqrt(5), as Hugging Face PEFT has it. A
    module's key depends on its path's place in the sorted sites alone.

    Args:
      key: consumed.
      sites: the adapted modules, see `find_sites`.
      rank: of every module's factors.

    Raises:
      ValueError: the rank is not between 1 and every site's `min(D, K)`.

    Examples:
      >>> model = nn.Sequential([nn.Dense(8), nn.Dense(3)])
      >>> sites = find_sites(model, jnp.zeros((1, 4)), targets="layers_0")
      >>> adapter = init(jax.random.key(0), sites, rank=2)
      >>> {name: x.shape for name, x in adapter["layers_0"].items()}
      {'a': (4, 2), 'b': (2, 8)}
    """
    check_rank(sites, rank)
    keys = jax.random.split(key, len(sites))
    pairs = zip(sorted(sites), keys, strict=True)
    return {path: _init_site(k, sites[path], rank) for path, k in pairs}


def check_rank(sites: Mapping[str, Site], rank: int) -> None:
    """Raise `ValueError` if a rank is not between 1 and every site's `min(D, K)`."""
    path, largest = min(
        ((path, min(site.factor_shape[1:])) for path, site in sites.items()),
        key=lambda item: item[1],
    )
    if not 1 <= rank <= largest:
        raise ValueError(
            f"rank {rank} does not fit: it must be between 1 and {largest} "
            f"(the smaller side of '{path}')"
        )


def _init_site(key: Array, site: Site, rank: int) -> Entry:
    stack, inputs, outputs = site.factor_shape
    bound = 1 / math.sqrt(inputs)
    a = jax.random.uniform(key, (*stack, inputs, rank), minval=-bound, maxval=bound)
    return {"a": a, "b": jnp.zeros((*stack, rank, outputs))}


def trained_modules(base: Params, paths: Sequence[str]) -> Adapter:
    """Entries for modules that are trained whole, at the base's values, in float32.

    Args:
      base: the model's parameters.
      paths: of the modules.

    Raises:
      ValueError: the base has no module at a path.
    """
    return {path: _params_at(base, path) for path in paths}


def check_apart(sites: Mapping[str, Site], whole: Sequence[str]) -> None:
    """Check that no module that is trained whole holds another trained one.

    Args:
      sites: the adapted modules.
      whole: the paths of the modules that are trained whole.

    Raises:
      ValueError: one does.
    """
    for number, path in enumerate(whole):
        others = [*sites, *whole[:number], *whole[number + 1 :]]
        inside = [other for other in others if f"{other}/".startswith(f"{path}/")]
        if inside:
            kind = "a target" if inside[0] in sites else "trained whole"
            raise ValueError(
                f"'{path}' is trained whole, but '{inside[0]}' in it is {kind} too: "
                "leave one of the two out"
            )


def _params_at(base: Params, path: str) -> Entry:
    flat, prefix = flat_params(base), f"{path}/"
    values = {
        k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)
    }
    if not values:
        modules = sorted({key.split("/")[0] for key in flat})
        raise ValueError(
            f"no module '{path}' to train; the modules are: {_summary(modules)}"
        )
    return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


# --- A base: parameters, or all variables --------------------------------------------


def flat_params(base: Params) -> dict[str, Array]:
    """The parameters of a base by path, in a new dictionary."""
    flat: Any = flatten_dict(dict(base.get(_PARAMS, base)), sep="/")
    return flat


def with_params(base: Params, flat: Mapping[str, Array]) -> Params:
    """The base with other parameters, given by path."""
    params = unflatten_dict(flat, sep="/")
    return {**base, _PARAMS: params} if _PARAMS in base else params


def _with_whole(base: Params, adapter: Adapter) -> Params:
    """The base with the modules that an adapter has trained whole.

    Raises:
      ValueError: the base has no module of an entry's path, which would be without
        effect.
    """
    flat = flat_params(base)
    modules = {name.rpartition("/")[0] for name in flat}
    if unknown := sorted({*adapter} - modules):
        raise ValueError(
            f"the adapter's '{unknown[0]}' is no module of the base, whose modules are "
            f"{', '.join(sorted(modules)[:3])}, ...: leave it out, or rename it"
        )
    for path, entry in adapter.items():
        if not is_factors(entry):
            flat.pop(f"{path}/{INT8_SCALE}", None)
            flat |= {f"{path}/{name}": value for name, value in entry.items()}
    return with_params(base, flat)


def _variables(base: Params, adapter: Adapter) -> Params:
    """What the adapted model is applied to: all collections, the factors among them."""
    base = _with_whole(base, adapter)
    factors = {path: dict(e) for path, e in adapter.items() if is_factors(e)}
    others = base if _PARAMS in base else {_PARAMS: base}
    return {**others, _LORA: unflatten_dict(factors, sep="/")}


# --- Applying and folding ------------------------------------------------------------


def bind(model: Model, *, scale: float) -> Apply:
    """A pure function `apply(base, adapter, *inputs, **kwargs)` of the adapted model.

    `base` is the model's parameters or variables, `adapter` any `Adapter` (of any
    rank). The product with the factors is taken in the dtype of the layer's output.
    When called, `apply` rejects an entry that is no module of the base with a
    `ValueError`. Within `jax.jit` and the like the model is traced once for each kind
    of arguments, whatever the program, so that what it prints it prints once.

    Args:
      model: a Linen or NNX model.
      scale: the factor `s = alpha / R` with which every delta is added.
    """
    return traced_once(_bound(model, scale))


def _bound(
    model: Model,
    scale: float,
    observe: of_nnx.Observe | None = None,
    watch: Mapping[str, Callable[[Array], object]] = MappingProxyType({}),
) -> Callable[..., Any]:
    """See `bind`; `observe` and, for NNX, `watch` are as in `of_nnx.bind`."""
    if isinstance(model, nnx.Module):
        call = of_nnx.bind(model, scale=scale, observe=observe, watch=watch)

        def apply(base: Params, adapter: Adapter, *inputs: Any, **kwargs: Any) -> Any:
            variables = _variables(base, adapter)
            factors = {path: e for path, e in adapter.items() if is_factors(e)}
            return call(variables, factors, *inputs, **kwargs)

        return apply
    intercept, linen = _adder(scale, observe), model

    def apply_linen(base: Params, adapter: Adapter, *inputs: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(intercept):
            return linen.apply(_variables(base, adapter), *inputs, **kwargs)

    return apply_linen


def bind_inputs(model: Model, *, scale: float) -> Callable[..., dict[str, Array]]:
    """A pure function from `(base, adapter, *inputs)` to every adapted module's inputs.

    `{path: [T, D]}`, `T` all positions of all examples, float32: the rows that meet the
    factors `a`. When called, it rejects a layer that the model scans over with a
    `ValueError`.

    Args:
      model: a Linen or NNX model.
      scale: the factor `s` of `bind`.
    """

    def apply(
        base: Params, adapter: Adapter, *inputs: Any, **kwargs: Any
    ) -> dict[str, Array]:
        seen: dict[str, Array] = {}

        def record(path: str, layer: Layer, module: nn.Module, x: Array) -> None:
            size = adapter[path]["a"].shape[0]
            rows = layer.project(module, x, jnp.eye(size, dtype=x.dtype))
            seen[path] = rows.reshape(-1, size).astype(jnp.float32)

        for path, entry in adapter.items():
            if is_factors(entry) and entry["a"].ndim != 2:
                raise ValueError(
                    f"the model scans over '{path}', so the inputs of its single "
                    "layers cannot be read"
                )
        _bound(model, scale, record)(base, adapter, *inputs, **kwargs)
        return seen

    return apply


def _adapted_layer(context: nn.module.InterceptorContext) -> Layer | None:
    """The kind of layer that is called, if it is one that has factors."""
    if context.method_name != "__call__" or not (layer := kind_of(context.module)):
        return None
    return layer if context.module.has_variable(_LORA, "a") else None


def _adder(scale: float, observe: of_nnx.Observe | None) -> Interceptor:
    def add_delta(
        next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any
    ) -> Any:
        y, module = _rescaled(next_fun(*args, **kwargs), context), context.module
        layer = _adapted_layer(context)
        if layer is None:
            return y
        if observe is not None:
            observe(_path(module), layer, module, args[0])
        names = (name for name in "abmg" if module.has_variable(_LORA, name))
        factors = {n: module.get_variable(_LORA, n).astype(y.dtype) for n in names}
        x = args[0].astype(y.dtype)
        return y + scale * added(layer, module, x, factors, y.shape)

    return add_delta


def _rescaled(y: Array, context: nn.module.InterceptorContext) -> Array:
    """A layer's output, in the units of its kernel where that is in int8."""
    module = context.module
    if context.method_name != "__call__" or not module.has_variable(*_SCALE):
        return y
    return y * module.get_variable(*_SCALE).astype(y.dtype)


def bind_input_of(model: Model, path: str, *, scale: float) -> Apply:
    """A pure function from `(base, adapter, *inputs)` to what one module reads.

    With the head's path: the last hidden features. When called, it rejects the path of
    a module that the model does not call with a `ValueError`.

    Args:
      model: a Linen or NNX model.
      path: of the module.
      scale: the factor `s` of `bind`.
    """

    def apply(base: Params, adapter: Adapter, *inputs: Any, **kwargs: Any) -> Array:
        seen: list[Array] = []
        run = _watched(model, path, seen, scale)
        run(base, adapter, *inputs, **kwargs)
        if not seen:
            raise ValueError(f"the model calls no module '{path}'")
        return seen[0].astype(jnp.float32)

    return apply


def _watched(
    model: Model, path: str, seen: list[Array], scale: float
) -> Callable[..., Any]:
    """The adapted model, which puts what one module reads into a list."""
    if isinstance(model, nnx.Module):
        return _bound(model, scale, watch={path: seen.append})

    def record(next_fun: Callable[..., Any], args: Any, inner: Any, at: Any) -> Any:
        if _path(at.module) == path:
            seen.append(args[0])
        return next_fun(*args, **inner)

    def run(*args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(record):
            return _bound(model, scale)(*args, **kwargs)

    return run


def bind_add(
    sites: Mapping[str, Site], *, scale: float
) -> Callable[[Params, dict[str, Array]], Params]:
    """A pure function `add(base, deltas)` of dense deltas `{path: [..., D, K]}`.

    The base's kernels become `W + s delta`.

    Args:
      sites: the adapted modules, by path.
      scale: the factor `s` of `bind`.
    """

    def add(base: Params, deltas: dict[str, Array]) -> Params:
        flat = flat_params(base)
        for path, delta in deltas.items():
            kernel = flat[f"{path}/kernel"]
            if not jnp.issubdtype(kernel.dtype, jnp.floating):
                raise ValueError(
                    f"the base's '{path}' is {kernel.dtype}: such a base cannot change"
                )
            added = kernel + scale * _as_kernel(delta, sites[path])
            flat[f"{path}/kernel"] = added.astype(kernel.dtype)
        return with_params(base, flat)

    return add


def fold(
    base: Params, adapter: Adapter, sites: Mapping[str, Site], *, scale: float
) -> Params:
    """The base with one (unstacked) adapter folded in: `W + s a b`, for deployment.

    Applied with an empty adapter it computes what `bind` computes with this one.

    Args:
      base: the model's parameters or variables.
      adapter: of one client.
      sites: the adapted modules, by path.
      scale: the factor `s` of `bind`.
    """
    deltas = {p: _dense(entry) for p, entry in adapter.items() if is_factors(entry)}
    return bind_add(sites, scale=scale)(_with_whole(base, adapter), deltas)


def _dense(entry: Entry) -> Array:
    if "g" in entry:
        raise ValueError("gates depend on the input, so no single delta can be folded")
    inner = entry["a"] @ entry["m"] if "m" in entry else entry["a"]
    return jnp.matmul(inner, entry["b"], precision="highest")


def _as_kernel(delta: Array, site: Site) -> Array:
    order = (*range(site.stack), *site.inputs, *site.outputs)
    shaped = delta.reshape(tuple(site.kernel[axis] for axis in order))
    return jnp.transpose(shaped, np.argsort(order).tolist())
