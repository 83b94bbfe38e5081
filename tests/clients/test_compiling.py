"""Programs of few numbers are compiled quickly, and compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.clients import compiling


def softplus(x):
    return jnp.log1p(jnp.exp(x)) @ x


@pytest.fixture
def ten_are_few(monkeypatch):
    monkeypatch.setattr(compiling, "_FEW", 10)


@pytest.mark.parametrize(("size", "quickly"), [(10, True), (11, False)])
def test_few_numbers_are_compiled_quickly(ten_are_few, size, quickly):
    x, fn = jnp.arange(size) / 10, compiling.jit(softplus)
    np.testing.assert_allclose(fn(x), softplus(x), rtol=1e-5)
    assert (fn._quick is not None) == quickly


def test_a_function_is_compiled_for_each_size_that_it_sees(ten_are_few):
    fn = compiling.jit(lambda x: x.sum())
    assert [float(fn(jnp.ones(n))) for n in (5, 20, 5)] == [5, 20, 5]


@pytest.mark.parametrize("within", [jax.jit, jax.grad, jax.vmap, jax.checkpoint])
def test_it_can_be_called_within_another_transformation(within):
    """There, XLA takes no options of its own."""
    fn = compiling.jit(lambda x: (x**2).sum())
    x = jnp.ones((3, 2))
    expected = within(lambda x: (x**2).sum())(x)
    np.testing.assert_allclose(within(lambda x: fn(x))(x), expected, rtol=1e-6)


def test_what_is_lowered_is_what_is_called():
    fn = compiling.jit(softplus)
    compiled = fn.lower(jnp.ones(3)).compile()
    assert compiled.memory_analysis() is not None
    assert compiled(jnp.ones(3)) == fn(jnp.ones(3))


def test_arguments_can_be_donated_and_be_keys():
    fn = compiling.jit(
        lambda x, key: x + jax.random.normal(key, x.shape), donate_argnums=0
    )
    x = jnp.ones(4)
    assert fn(x, jax.random.key(0)).shape == (4,)
    assert x.is_deleted()


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    known = {"xla_backend_optimization_level": 0}
    monkeypatch.setattr(compiling, "_QUICK", known | {"no_such_option": True})
    assert compiling._known.__wrapped__() == known, "without its cache"
