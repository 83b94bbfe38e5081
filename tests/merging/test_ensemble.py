import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.merging import ensemble
from tests.helpers import normal

X = normal(np.random.default_rng(0), (6, 4))
ONE, TWO = (normal(np.random.default_rng(s), (4, 3)) for s in (1, 2))


def mixed(weight):
    both = {"federated": ONE, "local": TWO, "weight": jnp.float32(weight)}
    return ensemble(lambda base, adapter, x: base * x @ adapter)(2.0, both, X)


def test_probabilities_are_mixed():
    p, q = (jax.nn.softmax(2 * X @ adapter) for adapter in (ONE, TWO))
    np.testing.assert_allclose(np.exp(mixed(0.3)), 0.3 * p + 0.7 * q, atol=1e-5)


@pytest.mark.parametrize(("weight", "model"), [(1.0, ONE), (0.0, TWO)])
def test_the_ends_are_the_models(weight, model):
    np.testing.assert_allclose(
        np.exp(mixed(weight)), jax.nn.softmax(2 * X @ model), atol=1e-5
    )
