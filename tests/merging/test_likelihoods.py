import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.data.federation import Batch
from potara_jax.merging import likelihoods
from potara_jax.merging.curvature import curvature

LENGTH, CLASSES = 5, 4
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(LENGTH, CLASSES)), jnp.float32)
LABELS = jnp.array([-1, 2, -100, 0, 3], jnp.int32)
KEY = jax.random.key(0)
LOG_P = np.asarray(jax.nn.log_softmax(LOGITS))


def logits(base, adapter, example):
    return base * adapter * LOGITS


def of(make, labels=LABELS, **options):
    return make(logits, **options)(1.0, 1.0, (None, labels), KEY)


def test_a_sequences_likelihood_is_the_sum_over_its_answer():
    values, weight = of(likelihoods.empirical)
    expected = LOG_P[1, 2] + LOG_P[3, 0] + LOG_P[4, 3]
    np.testing.assert_allclose(values, [expected], rtol=1e-5)
    np.testing.assert_array_equal(weight, [1.0])


def test_drawn_answers_are_where_the_answer_is():
    values, weight = of(likelihoods.sampled, draws=500)
    assert values.shape == weight.shape == (500,)
    np.testing.assert_allclose(weight.sum(), 1, rtol=1e-5)
    sums = LOG_P[1][:, None, None] + LOG_P[3][:, None] + LOG_P[4]
    distance = np.abs(np.asarray(values)[:, None] - sums.ravel()).min(1)
    assert distance.max() < 1e-4
    entropy = -(np.exp(LOG_P) * LOG_P).sum(1)[[1, 3, 4]].sum()
    assert -float(values.mean()) == pytest.approx(entropy, abs=0.15)


def test_what_is_no_answer_changes_nothing():
    changed = LABELS.at[0].set(-7)
    for make in (likelihoods.empirical, likelihoods.sampled):
        np.testing.assert_array_equal(of(make)[0], of(make, changed)[0])


def test_no_answer_at_all_is_certain():
    values, _ = of(likelihoods.empirical, jnp.full(LENGTH, -1))
    assert float(values[0]) == 0


def test_the_exact_fisher_refuses_sequences():
    with pytest.raises(ValueError, match="one label an example"):
        of(likelihoods.exact)


def test_exact_weights_are_the_probabilities():
    one = lambda base, adapter, example: LOGITS[0]
    values, weight = likelihoods.exact(one)(None, None, (None, 0), KEY)
    np.testing.assert_allclose(values, LOG_P[0], rtol=1e-5)
    np.testing.assert_allclose(weight, np.exp(LOG_P[0]), rtol=1e-5)


# --- Tasks without logits -----------------------------------------------------------

RESIDUALS = jnp.array([0.5, -2.0, 1.5])
INPUTS = jnp.array([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]])


def half_squared(base, adapter, batch):
    inputs, targets = batch.inputs, batch.labels
    return (base * inputs @ adapter - targets) ** 2 / 2


def test_the_fisher_of_a_loss_is_that_of_its_gradients():
    """Of a linear regression: the mean of `residual^2 input^2`."""
    likelihood = likelihoods.empirical_of_loss(half_squared)
    adapter = jnp.array([0.3, -0.7])
    actual = curvature(
        lambda theta, example, key: likelihood(1.0, theta, example, key),
        adapter,
        2 * adapter,
        Batch(INPUTS, INPUTS @ adapter - RESIDUALS),
        jnp.ones(3),
        KEY,
    )
    expected = (np.square(RESIDUALS)[:, None] * np.square(INPUTS)).mean(0)
    np.testing.assert_allclose(actual.federated, expected, rtol=1e-5)
    assert np.abs(actual.local - expected).min() > 0.1


def test_of_cross_entropy_it_is_the_empirical_fishers():
    loss = lambda base, adapter, batch: (
        -jnp.take_along_axis(
            jax.nn.log_softmax(base * adapter * LOGITS[:1]), batch[1][:, None], 1
        )[:, 0]
    )
    of_one = lambda base, adapter, example: base * adapter * LOGITS[0]
    example = (None, jnp.int32(2))
    for adapter in (1.0, 0.4):
        actual, weight = likelihoods.empirical_of_loss(loss)(1.0, adapter, example, KEY)
        expected, one = likelihoods.empirical(of_one)(1.0, adapter, example, KEY)
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
        np.testing.assert_array_equal(weight, one)
