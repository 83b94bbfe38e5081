import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax import merging
from potara_jax.merging import Client, Measured, intervals
from tests.helpers import assert_close, normal
from tests.merging.toy import CLIENT, KEY, loss, one_example


def mean_of_samples(client: Client) -> Measured:
    """A weight that is the mean of the samples' first inputs."""
    share = client.weight / client.weight.sum()
    return Measured((share * client.examples[0][:, 0]).sum())


def test_the_bootstrap_of_a_mean_is_as_wide_as_its_error():
    size = 400
    x = normal(np.random.default_rng(0), (size, 1))
    client = CLIENT._replace(examples=(x,), weight=jnp.ones(size))
    estimator = merging.Estimator("mean", mean_of_samples)
    measured = jax.jit(merging.bootstrap(estimator, replicates=2000).measure)(client)
    assert float(measured.weight) == pytest.approx(float(x.mean()), abs=1e-6)
    low, high = measured.interval
    error = float(x.std()) / np.sqrt(size)
    mean = float(x.mean())
    np.testing.assert_allclose(
        [low, high],
        [mean - 1.645 * error, mean + 1.645 * error],
        atol=0.1 * error + 3e-3,
    )


def test_padded_samples_are_never_drawn():
    counts = intervals._resampled(KEY, CLIENT.weight, 50)
    assert not np.any(counts[:, -2:])
    np.testing.assert_array_equal(counts.sum(1), 10)


def test_the_bootstrap_takes_gradients_once():
    estimator = merging.potara(merging.exact(one_example), merging.relative(0.3))
    program = lambda n: jax.make_jaxpr(
        merging.bootstrap(estimator, replicates=n).measure
    )
    tanh = lambda n: [
        line for line in str(program(n)(CLIENT)).splitlines() if " tanh " in line
    ]
    assert len(tanh(64)) == len(tanh(2)) > 0
    assert not any("[64," in line for line in tanh(64))


def test_the_bootstrap_leaves_the_weight_as_it_is():
    estimator = merging.potara(merging.exact(one_example), merging.relative(0.3))
    both = (estimator, merging.bootstrap(estimator, replicates=5))
    expected, actual = (jax.jit(each.measure)(CLIENT) for each in both)
    assert_close(actual._replace(interval=None), expected)


def test_an_interval_of_a_common_weight_is_refused():
    with pytest.raises(ValueError, match="'hermite_bayes' weighs clients together"):
        merging.bootstrap(merging.hermite_bayes(loss))
