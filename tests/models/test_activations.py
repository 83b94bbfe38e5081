from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from potara_jax.models import activations

POINTS = jnp.linspace(-6, 6, 61)
PAIRS = {
    "exact": (activations.gelu, partial(nn.gelu, approximate=False)),
    "tanh": (activations.tanh_gelu, nn.gelu),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_values_and_derivatives_are_those_of_flax(name, order):
    def derivative(function):
        for _ in range(order):
            function = jax.grad(function)
        return jax.jit(jax.vmap(function))(POINTS)

    ours, theirs = map(derivative, PAIRS[name])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_one_array_is_kept_for_the_gradient(name):
    _, back = jax.vjp(PAIRS[name][0], POINTS)
    kept = [x for x in jax.tree.leaves(back) if np.shape(x) == POINTS.shape]
    assert len(kept) == 1
