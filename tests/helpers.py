"""Random factors and adapters, and their dense algebra in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np


def factors(seed, inputs=6, outputs=5, rank=2, lead=()):
    rng = np.random.default_rng(seed)
    return {
        "a": normal(rng, (*lead, inputs, rank)),
        "b": normal(rng, (*lead, rank, outputs)),
    }


def normal(rng, shape):
    """Drawn by NumPy, so that nothing is compiled."""
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def dense(entry):
    """The delta in float64, a core between the factors included."""
    exact = {name: np.asarray(x, np.float64) for name, x in entry.items()}
    left = exact["a"] @ exact["m"] if "m" in exact else exact["a"]
    return left @ exact["b"]


def gauge(seed, rank=2, least=0.3, most=3.0):
    """A random invertible matrix with the given extreme singular values."""
    rng = np.random.default_rng(seed)
    first, second = (np.linalg.qr(rng.normal(size=(rank, rank)))[0] for _ in range(2))
    return first @ np.diag(np.linspace(least, most, rank)) @ second


def regauged(entry, matrix):
    """Other factors of the same delta: `(a G, G^-1 b)`."""
    a, b = (np.asarray(entry[name], np.float64) for name in "ab")
    return {"a": jnp.float32(a @ matrix), "b": jnp.float32(np.linalg.inv(matrix) @ b)}


def assert_close(actual, expected, *, rtol=0.0, atol=1e-5):
    """Equal structure, and leaves that are close; `atol` is relative to the largest."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        y = np.asarray(y, np.float64)
        scale = max(np.abs(y).max(initial=0.0), 1e-30)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol * scale)


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *trees)


def pick(tree, index):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[index]), tree)
