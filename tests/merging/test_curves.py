import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from potara_jax import merging
from potara_jax.merging import curves
from potara_jax.merging.curves import TEMPERATURES, Curves
from potara_jax.merging.weights.tempered import mix, tempered_bayes
from tests.merging.toy import CLIENT, logits, loss

FINE = np.linspace(0, 1, 101)


@pytest.mark.parametrize("points", [4, 6, 11])
def test_the_spline_is_scipys_without_end_knots(points):
    values = np.random.default_rng(0).normal(size=points)
    expected = CubicSpline(np.linspace(0, 1, points), values)(FINE)
    np.testing.assert_allclose(curves.spline(points) @ values, expected, atol=1e-4)


def test_the_spline_of_a_cubic_is_the_cubic():
    cubic = lambda w: 1 - 2 * w + 3 * w**2 - 4 * w**3
    values = cubic(np.linspace(0, 1, 6))
    np.testing.assert_allclose(curves.spline(6) @ values, cubic(FINE), atol=1e-5)


def test_the_loss_of_labels_left_out_is_that_of_the_others():
    rng = np.random.default_rng(1)
    z, labels = rng.normal(size=(2, 3, 4)), np.array([[1, 2, -1], [0, -1, -1]])
    log_p = z / 2 - np.log(np.exp(z / 2).sum(-1, keepdims=True))
    expected = [-(log_p[0, 0, 1] + log_p[0, 1, 2]) / 2, -log_p[1, 0, 0]]
    computed = curves.cross_entropy(jnp.asarray(z), jnp.asarray(labels), 2.0)
    np.testing.assert_allclose(computed, expected, rtol=1e-5)


def test_a_clients_curves_are_its_losses_along_the_segment():
    measured = jax.jit(lambda c: curves.measure(logits, c, 5))(CLIENT)
    at = merging.segment.segment_loss(loss, CLIENT)
    expected = [float(at(jnp.float32(w))) for w in np.linspace(0, 1, 5)]
    one = TEMPERATURES.index(1.0)
    np.testing.assert_allclose(measured.loss[one], expected, rtol=1e-5)
    assert float(measured.count) == 10  # of twelve, two are padded


def losses_of(coefficients, points=6):
    """Losses `[T, N, P]` of parabolas `[N, 3]`, at two temperatures."""
    at = np.linspace(0, 1, points)
    curve = np.asarray(coefficients) @ np.stack([np.ones(points), at, at**2])
    return jnp.asarray(np.stack([curve, curve + 1]), jnp.float32)


def test_the_coefficients_of_parabolas_are_recovered_with_their_covariance():
    samples = np.random.default_rng(2).normal(size=(7, 3))
    summary = curves.summarise(losses_of(samples), jnp.arange(7) < 5)
    real = samples[:5, 1:]
    np.testing.assert_allclose(summary.slope[0], real.mean(0), atol=1e-4)
    np.testing.assert_allclose(summary.spread[1], np.cov(real.T, ddof=0), atol=1e-3)
    assert float(summary.count) == 5


def test_samples_that_are_not_numbers_are_left_out():
    samples = np.random.default_rng(3).normal(size=(4, 3))
    losses = losses_of(samples)
    broken = losses.at[1, 2, 3].set(jnp.nan)
    kept = curves.summarise(losses, jnp.array([True, True, False, True]))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5),
        curves.summarise(broken, jnp.full(4, True)),
        kept,
    )


def clients(minima, count, noise=0.1):
    """Curves of clients whose loss `(w - m)^2` has a minimum each."""
    summaries = []
    for i, m in enumerate(minima):
        spread = np.random.default_rng(i).normal(
            scale=noise, size=(max(count[i], 1), 2)
        )
        spread -= spread.mean(0)
        samples = np.stack(
            [np.full(len(spread), m**2), -2 * m + spread[:, 0], 1 + spread[:, 1]], 1
        )
        real = jnp.arange(len(spread)) < count[i]
        summaries.append(curves.summarise(losses_of(samples), real))
    return jax.tree.map(lambda *x: jnp.stack(x), *summaries)


def test_the_temperature_is_that_of_the_least_loss_of_all_clients():
    chosen, fine = curves.tempered(clients([0.2, 0.7], [5, 5]))
    np.testing.assert_allclose(chosen.loss, clients([0.2, 0.7], [5, 5]).loss[:, 0])
    np.testing.assert_allclose(fine[0], (FINE - 0.2) ** 2, atol=1e-5)


def test_the_temperature_is_right_at_the_best_weight_and_not_on_average():
    """At the second temperature the least loss is lower, though the mean is higher."""
    low, high = [0.9, 0.8, 0.8, 0.9], [0.9, 2.0, 0.7, 0.9]
    losses = jnp.asarray([low, high], jnp.float32)[:, None].repeat(3, 1)
    one = curves.summarise(losses, jnp.full(3, True))
    chosen, _ = curves.tempered(jax.tree.map(lambda x: x[None], one))
    np.testing.assert_allclose(chosen.loss, [high])


def weights_of(make, measured):
    return np.asarray(make(logits).decide(measured, measured.count).weight)


def test_many_samples_are_believed_and_no_sample_means_the_prior():
    measured = clients([0.1, 0.3, 0.8, 0.5], [4000, 4000, 4000, 0])
    for make in (tempered_bayes, mix):
        weights = weights_of(make, measured)
        np.testing.assert_allclose(weights[:3], [0.1, 0.3, 0.8], atol=0.03)
    assert weights_of(tempered_bayes, measured)[3] == pytest.approx(0.4, abs=0.03)


def test_clients_that_differ_by_noise_alone_share_one_weight():
    rng = np.random.default_rng(5)
    samples = lambda: np.stack(
        [np.zeros(8), -0.6 + rng.normal(size=8), np.full(8, 1.0)], 1
    )
    summaries = [
        curves.summarise(losses_of(samples()), jnp.full(8, True)) for _ in range(40)
    ]
    measured = jax.tree.map(lambda *x: jnp.stack(x), *summaries)
    chosen, fine = curves.tempered(measured)
    spread = lambda x: np.std(FINE[np.argmin(np.asarray(x), -1)])
    assert spread(curves.shrunk(chosen, fine)) < 0.5 * spread(fine)


def test_shrinking_is_the_best_linear_prediction():
    """Against the same in NumPy, for one coefficient of two."""
    measured = clients([0.1, 0.4, 0.9], [6, 6, 6], noise=0.5)
    chosen, fine = curves.tempered(measured)
    slope, spread = np.asarray(chosen.slope, np.float64), np.asarray(chosen.spread)
    off = slope - slope.mean(0)
    within = spread.mean(0) / 5
    values, vectors = np.linalg.eigh(off.T @ off / 3 - within)
    signal = (vectors * np.maximum(values, 0)) @ vectors.T
    predicted = off @ np.linalg.inv(signal + within) @ signal
    expected = np.asarray(fine).mean(0) + predicted @ np.stack([FINE, FINE**2])
    np.testing.assert_allclose(curves.shrunk(chosen, fine), expected, atol=2e-3)


def test_an_interval_narrows_with_samples_and_without_any_is_the_priors():
    minima = [0.1, 0.3, 0.7, 0.9, 0.5, 0.5]
    measured = clients(minima, [4000, 40, 40, 40, 2, 0])
    result = tempered_bayes(logits).decide(measured, measured.count)
    low, high = map(np.asarray, result.interval)
    assert np.all(low <= result.weight) and np.all(result.weight <= high)
    many, some, *_, few, none = high - low
    assert many < some < few <= none
    assert low[5] == pytest.approx(0.1, abs=0.05)
    assert high[5] == pytest.approx(0.9, abs=0.1)


def test_a_client_gains_where_its_samples_show_it():
    """Losses `(w - m)^2`: a clear middle, an end, noise, one sample, and none."""
    clear = clients([0.5, 0.0, 1.0], [40, 40, 40])
    noisy = clients([0.5, 0.5, 0.5], [40, 1, 0], noise=4.0)
    measured = jax.tree.map(lambda *x: jnp.concatenate(x), clear, noisy)
    chosen, _ = curves.tempered(measured)
    assert curves.gains(chosen).tolist() == [True, False, False, False, False, False]
    gains = tempered_bayes(logits).decide(measured, measured.count).gains
    np.testing.assert_array_equal(gains, curves.gains(chosen))


@pytest.mark.parametrize(("errors", "shown"), [(2.0, True), (1.5, False)])
@pytest.mark.parametrize("end", [0, 1])
def test_a_gain_is_some_standard_errors_over_the_better_model(end, errors, shown):
    """By hand: the loss falls by 0.1 a unit of weight from the better model on."""
    noise = np.random.default_rng(9).normal(size=50)
    noise = (noise - noise.mean()) / noise.std()
    fall = -0.1 + 0.1 / errors * np.sqrt(49) * noise
    linear = fall if end == 0 else -fall
    zero = np.zeros(50)
    one = curves.summarise(
        losses_of(np.stack([zero, linear, zero], 1)), jnp.full(50, True)
    )
    worse = one.loss[0].at[end - 1].add(1)  # so that its other end is the worse model
    chosen = Curves(worse[None], one.slope[:1], one.spread[:1], one.count[None])
    assert curves.gains(chosen).tolist() == [shown]


def test_the_order_of_clients_changes_nothing_but_the_order():
    measured = clients([0.1, 0.4, 0.9], [3, 9, 20])
    reverse = Curves(*(x[::-1] for x in measured))
    for make in (tempered_bayes, mix):
        np.testing.assert_allclose(
            weights_of(make, reverse), weights_of(make, measured)[::-1], atol=1e-5
        )


def test_too_few_points_have_no_spline():
    with pytest.raises(ValueError, match="curve_points is 3"):
        mix(logits, curve_points=3)
