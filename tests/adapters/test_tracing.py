"""A model that is traced once for all programs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from potara_jax.adapters import lora
from potara_jax.adapters.tracing import traced_once

X = jnp.arange(6.0).reshape(2, 3)
W = {"a": jnp.full(3, 2.0)}


def counted():
    """A function of a parameter, of inputs and of flags, and its traces."""
    traces = []

    def fn(w, x, square=False, names=()):
        traces.append(x.shape)
        y = w["a"] * x
        return y**2 if square else y

    return traced_once(fn), traces


def test_programs_of_the_same_shapes_share_a_trace():
    fn, traces = counted()
    jax.jit(lambda w: fn(w, X).sum())({"a": 2.0 * jnp.ones(3)})
    jax.jit(jax.grad(lambda w: fn(w, X).sum()))({"a": jnp.ones(3)})
    jax.jit(jax.vmap(lambda w: fn(w, X)))({"a": jnp.ones((4, 3))})
    assert traces == [X.shape]


def test_other_shapes_and_other_flags_are_traced_apart():
    fn, traces = counted()
    called = lambda *args, **kwargs: jax.jit(lambda w: fn(w, *args, **kwargs))(W)
    for _ in range(2):
        chex.assert_trees_all_equal(called(X), 2 * X)
        chex.assert_trees_all_equal(called(X, square=True), 4 * X**2)
        chex.assert_trees_all_equal(called(X, True), 4 * X**2)
        chex.assert_trees_all_equal(called(np.asarray(X[:1])), 2 * X[:1])
    assert len(traces) == 4


def test_equal_numbers_of_two_types_are_two_kinds():
    scaled = traced_once(lambda x, factor: x * factor)
    x = jnp.arange(3)
    assert jax.jit(lambda x: scaled(x, 2))(x).dtype == jnp.int32
    assert jax.jit(lambda x: scaled(x, 2.0))(x).dtype == jnp.float32


def test_arguments_without_a_hash_are_passed_on():
    fn, traces = counted()
    for _ in range(2):
        named = jax.jit(lambda w: fn(w, X, names={1, 2}))
        chex.assert_trees_all_equal(named(W), 2 * X)
    assert len(traces) == 2


def test_what_is_not_traced_is_called_as_it_is():
    fn, traces = counted()
    for _ in range(2):
        chex.assert_trees_all_equal(fn(W, X), 2 * X)
    assert len(traces) == 2


def test_derivatives_are_those_of_the_function():
    fn, _ = counted()
    loss = lambda w: fn({"a": w}, X, square=True).sum()
    w = jnp.array([1.0, -2.0, 3.0])
    chex.assert_trees_all_close(jax.grad(loss)(w), 2 * w * (X**2).sum(0))
    chex.assert_trees_all_close(jax.hessian(loss)(w), jnp.diag(2 * (X**2).sum(0)))


def test_the_program_is_the_same_as_without_it():
    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.gelu(nn.Dense(5)(x)))

    model = Mlp()
    base = model.init(jax.random.key(0), X)["params"]
    apply = lora.bind(model, scale=1.0)
    plain = lambda base, x: model.apply({"params": base}, x)
    program = lambda fn: jax.jit(jax.grad(lambda b: fn(b, X).sum())).lower(base)
    ours = program(lambda b, x: apply(b, {}, x)).compile()
    theirs = program(plain).compile()
    assert ours.cost_analysis() == theirs.cost_analysis()


def test_what_a_model_refuses_is_refused_each_time():
    def fn(x):
        if x.ndim != 2:
            raise ValueError("inputs must have two axes")
        return x

    for _ in range(2):
        with pytest.raises(ValueError, match="two axes"):
            jax.jit(traced_once(fn))(X[0])
