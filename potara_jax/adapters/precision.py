"""A frozen base in fewer bits; adapters and their optimiser stay in float32.

The model's `dtype` is that of its activations. On an accelerator it should be bfloat16
for a base in bfloat16 or int8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from potara_jax.adapters.layers import INT8_SCALE
from potara_jax.adapters.lora import Array, Params, Site, flat_params, with_params


def to_bfloat16(base: Params) -> Params:
    """The base with its floating-point parameters in bfloat16, two bytes each number.

    Other collections, such as the statistics of batch normalisation, stay as they are.
    """

    def cast(x: Array) -> Array:
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(jnp.bfloat16) if floating else x

    return with_params(base, jax.tree.map(cast, flat_params(base)))


def to_int8(base: Params, sites: Mapping[str, Site]) -> Params:
    """The base with the kernels at `sites` in int8, one byte each number.

    An output's scale `s` is the largest magnitude of its weights over 127. Weights are
    rounded to the nearest code, `W ~ s code`, with an error of at most `s / 2`. A layer
    computes `s (x code + bias / s)`, so no kernel is ever restored to full precision;
    `lora.bind` applies `s`. Activations and other arrays stay as they are.

    Args:
      base: parameters in floating point, or all variables.
      sites: the kernels to convert; `lora.find_sites` with the target `.*` gives all.
    """
    flat = flat_params(base)
    for path, site in sites.items():
        kernel = flat[f"{path}/kernel"].astype(jnp.float32)
        scale = jnp.abs(kernel).max(site.inputs, keepdims=True) / 127
        scale = jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
        flat[f"{path}/kernel"] = jnp.round(kernel / scale).astype(jnp.int8)
        scale = scale.squeeze(site.inputs)
        flat[f"{path}/{INT8_SCALE}"] = scale
        if f"{path}/bias" in flat:
            flat[f"{path}/bias"] = flat[f"{path}/bias"] / scale
    return with_params(base, flat)


# What makes a base of each precision, from the base and all its sites.
KINDS: dict[str, Callable[[Params, Mapping[str, Site]], Params]] = {
    "float32": lambda base, sites: base,
    "bfloat16": lambda base, sites: to_bfloat16(base),
    "int8": to_int8,
}
