"""The GELU, with a slope that costs one array.

Differentiated by its formula, it keeps two arrays of a layer's size for the gradient.
Here its slope is computed with its value, so that one is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import erfc

Array = jax.Array


def _with_slope(both: Callable[[Array], tuple[Array, Array]]) -> Callable:
    """The elementwise function of a pair of it and its derivative."""

    @jax.custom_jvp
    def function(x: Array) -> Array:
        return both(x)[0]

    def derivative(
        primals: tuple[Array], tangents: tuple[Array]
    ) -> tuple[Array, Array]:
        value, slope = both(*primals)
        return value, slope * tangents[0]

    function.defjvp(derivative)
    return function


def _gelu(x: Array) -> tuple[Array, Array]:
    below = erfc(-x / math.sqrt(2)) / 2
    density = jnp.exp(-jnp.square(x) / 2) / math.sqrt(2 * math.pi)
    return x * below, below + x * density


def _tanh_gelu(x: Array) -> tuple[Array, Array]:
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    tanh = jnp.tanh(root * (x + cubic * x**3))
    below = (1 + tanh) / 2
    inner = root * (1 + 3 * cubic * jnp.square(x))
    return x * below, below + x * (1 - jnp.square(tanh)) * inner / 2


gelu = _with_slope(_gelu)
gelu.__doc__ = "`x Phi(x)`, Phi the normal distribution (arXiv 1606.08415)."
tanh_gelu = _with_slope(_tanh_gelu)
tanh_gelu.__doc__ = "Its approximation by a hyperbolic tangent, with slope (ibid.)."
