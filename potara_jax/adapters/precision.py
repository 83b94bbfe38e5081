"""A frozen base in fewer bits; adapters and their optimiser stay in float32.

The model's own `dtype` is that of its activations: with a base in bfloat16 or int8 it
should be bfloat16 on an accelerator.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from potara_jax.adapters.lora import INT8_SCALE, Params, Site


def to_bfloat16(base: Params) -> Params:
    """The base with its floating-point arrays in bfloat16: two bytes a number."""
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if is_float(x) else x, base)


def to_int8(base: Params, sites: Mapping[str, Site]) -> Params:
    """The base with the kernels of `sites` in int8: one byte a number, weights alone.

    An output's scale `s` is its largest magnitude over 127, and a kernel is rounded to
    nearest: `W ~ s code`, an error of `s / 2` at most. A layer computes `s (x code + b
    / s)`, so no kernel is ever had in full precision; `lora.bind` sees to `s`. Other
    arrays stay as they are. sites: all that can be, by `lora.find_sites` of `.*`.
    """
    flat = flatten_dict(dict(base), sep="/")
    for path, site in sites.items():
        kernel = flat[f"{path}/kernel"].astype(jnp.float32)
        scale = jnp.abs(kernel).max(site.inputs, keepdims=True) / 127
        scale = jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
        flat[f"{path}/kernel"] = jnp.round(kernel / scale).astype(jnp.int8)
        scale = scale.squeeze(site.inputs)
        flat[f"{path}/{INT8_SCALE}"] = scale
        if f"{path}/bias" in flat:
            flat[f"{path}/bias"] = flat[f"{path}/bias"] / scale
    return unflatten_dict(flat, sep="/")


# By name: functions of the base and of all its sites.
KINDS = {
    "float32": lambda base, sites: base,
    "bfloat16": lambda base, sites: to_bfloat16(base),
    "int8": to_int8,
}
