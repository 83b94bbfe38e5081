"""The kinds of layers that LoRA can adapt, and their products with the factors.

A layer is described by a Linen module, whichever library it is called by. Dimension
letters: `D` inputs, `K` outputs, `R` rank; `...` are the leading axes of layers that
the model scans over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array
Shape = tuple[int, ...]
Axes = tuple[Sequence[int], Sequence[int]]  # contracted and produced

INT8_SCALE = "int8_scale"  # beside a kernel in int8, see `precision.to_int8`


class Site(NamedTuple):
    """One kernel that can be adapted.

    Attributes:
      path: the module, as `block_0/attention/query`.
      kernel: the kernel's shape.
      inputs: the axes of the kernel that are contracted.
      outputs: the axes of the kernel that are produced.
      stack: the number of leading axes that the model scans over.
    """

    path: str
    kernel: Shape
    inputs: Shape
    outputs: Shape
    stack: int

    @property
    def factor_shape(self) -> tuple[Shape, int, int]:
        """The scanned axes, `D` and `K`."""
        inputs, outputs = (
            math.prod(self.kernel[axis] for axis in axes)
            for axes in (self.inputs, self.outputs)
        )
        return self.kernel[: self.stack], inputs, outputs


# --- Which layers can be adapted, and how each contracts its input -------------------


class Layer(NamedTuple):
    """A kind of layer: its kernel's axes, and its products with `a` and with `b`."""

    axes: Callable[[Any, int], Axes]
    project: Callable[[Any, Array, Array], Array]
    expand: Callable[[Any, Array, Array, Shape], Array]


def _matmul_expand(module: nn.Module, hidden: Array, b: Array, shape: Shape) -> Array:
    del module
    return (hidden @ b).reshape(shape)


def _dense_axes(module: nn.Module, rank: int) -> Axes:
    del module, rank
    return (0,), (1,)


def _dense_project(module: nn.Module, x: Array, a: Array) -> Array:
    del module
    return x @ a


def _general_axes(module: nn.DenseGeneral, rank: int) -> Axes:
    contracted = len(_as_tuple(module.axis))
    if module.batch_dims:
        raise ValueError("a DenseGeneral with batch_dims")
    return range(contracted), range(contracted, rank)


def _general_project(module: nn.DenseGeneral, x: Array, a: Array) -> Array:
    axes = sorted(axis % x.ndim for axis in _as_tuple(module.axis))  # as Flax has them
    x = jnp.moveaxis(x, axes, range(-len(axes), 0))
    return x.reshape(*x.shape[: -len(axes)], -1) @ a


def _einsum_axes(module: nn.Einsum, rank: int) -> Axes:
    del rank
    _, kernel, output = _einsum_labels(module)
    inputs = [i for i, label in enumerate(kernel) if label not in output]
    return inputs, [i for i, label in enumerate(kernel) if label in output]


def _einsum_project(module: nn.Einsum, x: Array, a: Array) -> Array:
    x_labels, kernel, output = _einsum_labels(module)
    contracted = "".join(label for label in kernel if label not in output)
    rest = "".join(label for label in x_labels if label not in contracted)
    sizes = [x.shape[_axis(x_labels, label, x.ndim)] for label in contracted]
    rank_label = _free_label(x_labels + kernel + output)
    a = a.reshape(*sizes, a.shape[-1])
    equation = f"{x_labels},{contracted}{rank_label}->{rest}{rank_label}"
    return jnp.einsum(equation, x, a)


def _einsum_expand(module: nn.Einsum, hidden: Array, b: Array, shape: Shape) -> Array:
    x_labels, kernel, output = _einsum_labels(module)
    produced = "".join(label for label in kernel if label in output)
    contracted = [label for label in kernel if label not in output]
    rest = "".join(label for label in x_labels if label not in contracted)
    rank_label = _free_label(x_labels + kernel + output)
    sizes = [shape[_axis(output, label, len(shape))] for label in produced]
    b = b.reshape(b.shape[0], *sizes)
    equation = f"{rest}{rank_label},{rank_label}{produced}->{output}"
    return jnp.einsum(equation, hidden, b)


def _einsum_labels(module: nn.Einsum) -> tuple[str, str, str]:
    if module.einsum_str is None:
        raise ValueError("an Einsum whose equation comes with the call")
    operands, output = module.einsum_str.replace(" ", "").split("->")
    x_labels, kernel = operands.split(",")
    shared = set(x_labels) & set(kernel) & set(output) - {"."}
    if shared or "." in kernel:
        raise ValueError(f"an Einsum '{module.einsum_str}' with batch axes")
    return x_labels, kernel, output


def _axis(labels: str, label: str, ndim: int) -> int:
    before, dots, after = labels.partition("...")
    if not dots or label in before:
        return labels.index(label)
    return ndim - len(after) + after.index(label)


def _free_label(used: str) -> str:
    return next(label for label in "rstuvwxyz" if label not in used)


def _conv_axes(module: nn.Conv, rank: int) -> Axes:
    if module.mask is not None:
        raise ValueError("a masked convolution")
    if module.feature_group_count != 1:
        raise ValueError("a grouped convolution")
    return range(rank - 1), (rank - 1,)


def _conv_project(module: nn.Conv, x: Array, a: Array) -> Array:
    window = _as_tuple(module.kernel_size)
    down = module.clone(features=a.shape[-1], use_bias=False, parent=None, name=None)
    kernel = a.reshape(*window, x.shape[-1], a.shape[-1])
    rows: Any = down.apply({"params": {"kernel": kernel}}, x)
    return rows


_KINDS: dict[type[nn.Module], Layer] = {
    nn.Dense: Layer(_dense_axes, _dense_project, _matmul_expand),
    nn.DenseGeneral: Layer(_general_axes, _general_project, _matmul_expand),
    nn.Einsum: Layer(_einsum_axes, _einsum_project, _einsum_expand),
    nn.Conv: Layer(_conv_axes, _conv_project, _matmul_expand),
}


def kind_of(module: nn.Module) -> Layer | None:
    """The kind of a layer, or None if LoRA cannot adapt it."""
    kinds = (_KINDS[kind] for kind in type(module).__mro__ if kind in _KINDS)
    return next(kinds, None)


def _as_tuple(value: int | Sequence[int]) -> Shape:
    return tuple(value) if isinstance(value, Sequence) else (value,)


# --- Kernels and deltas --------------------------------------------------------------


def site_of(
    path: str, module: nn.Module, layer: Layer, params: Mapping[str, Any]
) -> Site:
    """A layer's kernel, which is `params[path/kernel]`.

    Args:
      path: of the module.
      module: as the model calls it.
      layer: the kind of the module.
      params: the parameters, by path.

    Raises:
      ValueError: the kernel has batch axes or groups.
    """
    kernel = params[f"{path}/kernel"].shape
    rank = kernel_rank(module)
    try:
        inputs, outputs = layer.axes(module, rank)
    except ValueError as reason:
        raise ValueError(
            f"'{path}' is {reason}, which LoRA cannot adapt; leave it out of the "
            "targets"
        ) from None
    stack = len(kernel) - rank
    inputs, outputs = (tuple(stack + i for i in axes) for axes in (inputs, outputs))
    return Site(path, kernel, inputs, outputs, stack)


def kernel_rank(module: nn.Module) -> int:
    """The number of the kernel's axes, without those that the model scans over."""
    if isinstance(module, nn.DenseGeneral):
        return len(_as_tuple(module.axis)) + len(_as_tuple(module.features))
    if isinstance(module, nn.Conv):
        return len(_as_tuple(module.kernel_size)) + 2
    return len(module.shape) if isinstance(module, nn.Einsum) else 2


def added(
    layer: Layer,
    module: nn.Module,
    x: Array,
    factors: Mapping[str, Array],
    shape: Shape,
) -> Array:
    """What factors add to an output of that shape, without the scale.

    Args:
      layer: the kind of the module.
      module: as the model calls it.
      x: its input.
      factors: `a`, `b`, and perhaps a core `m` or gates `g`, in the dtype of `x`.
      shape: of the output.
    """
    hidden = layer.project(module, x, factors["a"])
    if "m" in factors:
        hidden = hidden @ factors["m"]
    if "g" in factors:
        hidden = _gated(hidden, layer.project(module, x, factors["g"]))
    return layer.expand(module, hidden, factors["b"], shape)


def _gated(hidden: Array, gates: Array) -> Array:
    shares = jax.nn.softmax(gates.astype(jnp.float32)).astype(hidden.dtype)
    return hidden * jnp.repeat(shares, hidden.shape[-1] // shares.shape[-1], -1)
