"""The correction by class shares, against counting by hand and Bayes' rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax import merging
from potara_jax.clients.axis import Layout
from potara_jax.clients.task import LOGIT_BIAS, of_classes
from potara_jax.data.federation import Batch
from potara_jax.merging import Samples, label_prior, registry
from tests.helpers_federated import linear, problem

COUNTS = np.array([[6, 0, 2], [1, 3, 0]])


def test_examples_of_each_class_are_counted_without_padding():
    labels = jnp.array([[0, 0, 2, 1], [1, 0, 0, 0]])
    counts = label_prior.class_counts(labels, jnp.array([3, 1]), classes=4)
    np.testing.assert_array_equal(counts, [[2, 0, 1, 0], [0, 1, 0, 0]])


def test_the_bias_by_hand():
    q = COUNTS.sum(0) / COUNTS.sum()
    expected = np.log((COUNTS + q) / (COUNTS.sum(1, keepdims=True) + 1)) - np.log(q)
    bias = label_prior.shift(jnp.asarray(COUNTS), jnp.asarray(COUNTS.sum(0)))
    np.testing.assert_allclose(bias, expected, rtol=1e-5)


def test_the_federations_shares_change_nothing_and_unknown_classes_are_finite():
    counts = jnp.array([[4.0, 2.0, 0.0], [0.0, 1.0, 0.0]])
    bias = label_prior.shift(counts, jnp.array([8.0, 4.0, 0.0]))
    np.testing.assert_allclose(bias[0, :2], 0, atol=1e-6)
    np.testing.assert_allclose(bias[0, 2], -np.log(7), rtol=1e-6)
    np.testing.assert_allclose(bias[1, 0], bias[1, 2], rtol=1e-6)


@pytest.mark.parametrize("method", ["linear", "ties", "slerp"])
def test_a_merge_has_the_bias_by_the_weight_of_the_federated_model(method):
    adapter, bias = problem().adapter, jnp.array([1.0, -2.0, 0.5])
    pair = label_prior.corrected(adapter, adapter, bias)
    for space in registry.merges()[method].spaces:
        merged = merging.merge(
            pair,
            merging.pair(0.3),
            method=registry.merges()[method].make(),
            space=space,
        )
        np.testing.assert_allclose(merged[LOGIT_BIAS]["bias"], 0.3 * bias, rtol=1e-6)


# --- Whether it helps ----------------------------------------------------------------

SHARES = np.array([[0.9, 0.1, 0.0], [0.1, 0.1, 0.8], [0.0, 0.8, 0.2]])
CLASSES, NUMBER = 3, 200


def samples(shares, seed=0):
    """Noisy one-hot features, whose logits are the right ones for equal shares."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.choice(CLASSES, NUMBER, p=p) for p in shares])
    inputs = np.eye(CLASSES)[labels] + rng.normal(size=(*labels.shape, CLASSES))
    batch = Batch(jnp.asarray(inputs, jnp.float32), jnp.asarray(labels))
    return Samples(batch, jnp.full(len(shares), NUMBER))


def measured(given, layout=None):
    """The losses of `logits = x`, right where log-likelihoods are `x . onehot`."""
    model = of_classes(lambda base, adapter, x: x + adapter["head"]["bias"])
    counts = jnp.asarray(40 * SHARES)
    bias = label_prior.shift(counts, jnp.full(CLASSES, 40.0))
    program = label_prior.losses(model.logits, layout=layout or Layout())
    adapters = {"head": {"bias": jnp.zeros((CLASSES, CLASSES))}}
    return program(None, adapters, given, bias), bias


def test_it_helps_where_the_test_has_the_clients_shares_and_not_with_equal_ones():
    like_training, _ = measured(samples(SHARES))
    equal, _ = measured(samples(np.full((3, 3), 1 / 3)))
    assert bool(like_training.helps) and not bool(equal.helps)
    assert like_training.plain - like_training.corrected > 0.2
    assert equal.corrected - equal.plain > 0.2


def test_its_losses_are_the_least_of_all_temperatures():
    given = samples(SHARES)
    losses, bias = measured(given)
    inputs, labels = map(np.asarray, given.examples[:2])
    for actual, logits in (
        (losses.plain, inputs),
        (losses.corrected, inputs + np.asarray(bias)[:, None]),
    ):
        means = []
        for t in merging.curves.TEMPERATURES:
            log_p = logits / t - np.log(np.exp(logits / t).sum(-1, keepdims=True))
            means.append(-np.take_along_axis(log_p, labels[..., None], -1).mean())
        np.testing.assert_allclose(actual, min(means), rtol=1e-5)


def test_padded_and_broken_samples_do_not_count():
    given = samples(SHARES)
    inputs = given.examples.inputs.at[:, 150:].set(jnp.nan)
    few = given._replace(count=jnp.full(3, 150))
    padded = few._replace(examples=given.examples._replace(inputs=inputs))
    broken = padded._replace(count=given.count)
    expected = measured(few)[0]
    for other in (padded, broken):
        actual = measured(other, Layout(1))[0]
        np.testing.assert_allclose(actual.plain, expected.plain, rtol=1e-5)
        np.testing.assert_allclose(actual.corrected, expected.corrected, rtol=1e-5)


# --- Models with a bias of their logits ----------------------------------------------


def test_a_model_has_the_bias_wherever_its_logits_are_used():
    given, bias = problem((8,)), jnp.array([1.0, -2.0, 0.5])
    base, batch = given.shared.base, given.shared.pool
    task = of_classes(
        linear, features=lambda base, adapter, x: x @ adapter["dense"]["a"]
    )
    plain, changed = given.adapter, label_prior.with_bias(given.adapter, bias)
    logits = task.logits(base, plain, batch)
    np.testing.assert_allclose(task.logits(base, changed, batch), logits + bias)
    features = task.features(base, changed, batch)
    np.testing.assert_array_equal(features, task.features(base, plain, batch))
    twice = label_prior.with_bias(changed, bias)
    np.testing.assert_allclose(task.logits(base, twice, batch), logits + 2 * bias)
    both = {"federated": changed, "local": plain, "weight": jnp.float32(1.0)}
    mixed = task.again(merging.ensemble).logits(base, both, batch)
    np.testing.assert_allclose(mixed, jax.nn.log_softmax(logits + bias), atol=1e-5)
