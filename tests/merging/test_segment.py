import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from potara_jax.merging import segment
from potara_jax.merging.segment import Cubic
from tests.helpers import stack

FINE = np.linspace(0, 1, 2001)

few = settings(deadline=None, max_examples=25)
unit = st.floats(0, 1)
values = st.floats(-3, 3)
minimise = jax.jit(segment.minimise)


# --- One segment ----------------------------------------------------------


def cubic(y0, d0, y1, d1, w):
    """The Hermite basis, in float64."""
    return (
        y0 * (1 + 2 * w) * (1 - w) ** 2
        + d0 * w * (1 - w) ** 2
        + y1 * w**2 * (3 - 2 * w)
        + d1 * w**2 * (w - 1)
    )


def cubic_minimiser(*ends):
    return float(minimise(Cubic(*map(jnp.float32, ends))))


@few
@given(values, values, values, values)
def test_the_cubics_minimum_is_below_a_fine_grid(y0, d0, y1, d1):
    chosen = cubic_minimiser(y0, d0, y1, d1)
    assert 0 <= chosen <= 1
    assert cubic(y0, d0, y1, d1, chosen) <= cubic(y0, d0, y1, d1, FINE).min() + 1e-5


@few
@given(values, values)
def test_a_lines_minimum_is_its_lower_end(start, slope):
    assume(abs(slope) > 1e-3)
    actual = cubic_minimiser(start, slope, np.float32(start) + np.float32(slope), slope)
    line = lambda w: start + slope * w
    assert line(actual) == pytest.approx(min(line(0), line(1)), abs=1e-5)


@few
@given(unit, st.floats(0.1, 10))
def test_a_parabolas_minimum_is_exact(centre, height):
    value = lambda w: height * (w - centre) ** 2
    slope = lambda w: 2 * height * (w - centre)
    actual = cubic_minimiser(value(0), slope(0), value(1), slope(1))
    assert actual == pytest.approx(centre, abs=2e-4)


@few
@given(unit, st.floats(0.1, 10))
def test_a_concave_parabolas_minimum_is_its_lower_end(centre, height):
    assume(abs(centre - 0.5) > 1e-3)
    value = lambda w: -height * (w - centre) ** 2
    slope = lambda w: -2 * height * (w - centre)
    actual = cubic_minimiser(value(0), slope(0), value(1), slope(1))
    assert actual == (0.0 if centre > 0.5 else 1.0)


@few
@given(st.floats(-2, 0.25), st.floats(0.1, 10))
def test_a_minimum_after_a_maximum_is_found(maximum, height):
    value = np.polynomial.Polynomial.fromroots([maximum, 0.8]).integ() * height
    ends = [f(end) for end in (0.0, 1.0) for f in (value, value.deriv())]
    assert cubic_minimiser(*ends) == pytest.approx(0.8, abs=1e-3)


def test_a_flat_cubic_takes_a_half():
    assert cubic_minimiser(1, 0, 1, 0) == 0.5


@few
@given(values, values, values, values, unit)
def test_the_value_is_the_cubics(y0, d0, y1, d1, w):
    actual = segment.value(Cubic(*map(jnp.float32, (y0, d0, y1, d1))), jnp.float32(w))
    assert float(actual) == pytest.approx(cubic(y0, d0, y1, d1, w), abs=1e-4)


def test_hermite_minimises_a_cubic_loss():
    loss = lambda w: (w - 0.2) ** 2 * (w + 1)
    actual = jax.jit(lambda: segment.minimise(segment.hermite(loss)))()
    assert float(actual) == pytest.approx(0.2, abs=1e-3)


def test_hermite_sees_the_ends_alone():
    cubic_loss = lambda w: (w - 0.2) ** 2 * (w + 1)
    at_ends = lambda w: jnp.where((w == 0) | (w == 1), cubic_loss(w), jnp.nan)
    assert float(minimise(segment.hermite(at_ends))) == pytest.approx(0.2, abs=1e-3)


def test_the_grid_takes_the_least_loss():
    losses, points = jnp.array([3.0, 1.0, 2.0]), jnp.array([0.0, 0.3, 1.0])
    assert float(segment.grid(losses, points)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1, 1, 1, 1, 1], 0.5),
        ([0, 1, 1, 0, 1], 0.75),
        ([0, 0, 1, 1, 0], 0.25),
        ([0, 2, 1, 1, 3], 0.0),
    ],
)
def test_of_equal_losses_the_grid_takes_the_nearest_to_a_half(losses, expected):
    points = jnp.linspace(0, 1, 5)
    assert float(segment.grid(jnp.array(losses), points)) == expected


def test_the_grid_keeps_leading_axes():
    losses = jnp.array([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    actual = segment.grid(losses, jnp.array([0.0, 0.25, 1.0]))
    np.testing.assert_array_equal(actual, [0.25, 0.0])


# --- Many clients' segments ----------------------------------------------------------


def parabola(centre, height=4.0):
    """The cubic of `height (w - centre)^2`."""
    ends = [(height * (w - centre) ** 2, 2 * height * (w - centre)) for w in (0, 1)]
    return Cubic(*map(jnp.float32, (*ends[0], *ends[1])))


def counts(*numbers):
    return jnp.asarray(numbers, jnp.float32)


pooled = jax.jit(segment.pooled)
bayes = jax.jit(lambda *args: segment.empirical_bayes(*args).weight)


def test_the_pooled_weight_is_that_of_the_mean_parabola():
    actual = pooled(stack([parabola(0.2), parabola(0.6)]), counts(10, 30))
    np.testing.assert_allclose(actual, [0.5, 0.5], atol=1e-3)


def test_the_posterior_mean_by_hand():
    """One step of EM from the uniform prior, in float64."""
    cubics, n = stack([parabola(0.1), parabola(0.8)]), np.array([5.0, 20.0])
    points = np.linspace(0, 1, 101)
    log_l = -n[:, None] * 4 * (points - np.array([[0.1], [0.8]])) ** 2
    share = lambda prior: (
        np.exp(log_l) * prior / (np.exp(log_l) * prior).sum(1, keepdims=True)
    )
    prior = share(np.full(101, 1 / 101)).mean(0)
    expected = share(prior) @ points
    actual = segment.empirical_bayes(cubics, counts(*n), steps=1)
    np.testing.assert_allclose(actual.weight, expected, atol=1e-4)
    below = np.cumsum(share(prior), 1)
    quantiles = [[points[(row < q).sum()] for row in below] for q in (0.05, 0.95)]
    np.testing.assert_allclose(actual.interval, quantiles, atol=1e-6)


def test_an_interval_holds_nine_tenths_of_the_posterior():
    """Of equal shares of 0, .01, ..., 1, and of one weight alone."""
    certain = jnp.zeros(101).at[30].set(1.0)
    measured = segment.of_posteriors(jnp.stack([jnp.full(101, 1 / 101), certain]))
    np.testing.assert_allclose(measured.weight, [0.5, 0.3], atol=1e-5)
    np.testing.assert_allclose(measured.interval, [[0.05, 0.3], [0.95, 0.3]], atol=1e-6)


def test_few_samples_are_drawn_to_what_is_typical():
    others = [parabola(0.7)] * 8
    near = lambda n: float(
        bayes(stack([parabola(0.2), *others]), counts(n, *[99] * 8))[0]
    )
    few_of_them, many = near(1), near(1000)
    assert few_of_them == pytest.approx(0.7, abs=0.05)
    assert many == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("weigh", [pooled, bayes])
def test_clients_that_agree_get_what_they_agree_on(weigh):
    actual = weigh(stack([parabola(0.3, 50.0)] * 3), counts(30, 30, 30))
    np.testing.assert_allclose(actual, 0.3, atol=0.02)


@pytest.mark.parametrize("weigh", [pooled, bayes])
def test_a_client_that_is_not_finite_keeps_the_others_finite(weigh):
    bad = Cubic(*[jnp.float32(jnp.nan)] * 4)
    actual = weigh(stack([parabola(0.3), bad]), counts(30, 30))
    assert np.isfinite(actual).all()


@pytest.mark.parametrize("weigh", [pooled, bayes])
def test_the_order_of_clients_does_not_matter(weigh):
    cubics, n = [parabola(c) for c in (0.1, 0.5, 0.9)], [5, 10, 20]
    one = weigh(stack(cubics), counts(*n))
    other = weigh(stack(cubics[::-1]), counts(*n[::-1]))
    np.testing.assert_allclose(one, other[::-1], atol=1e-5)


# --- Losses that are not numbers, and any scale ---------------------------------------


def test_grid_takes_no_point_whose_loss_is_not_a_number():
    points = jnp.array([0.0, 0.5, 1.0])
    assert segment.grid(jnp.array([jnp.nan, 1.0, 0.5]), points) == 1.0
    assert segment.grid(jnp.array([jnp.nan] * 3), points) == 0.5


@pytest.mark.parametrize("scale", [1e-25, 1e-8, 1.0, 1e15, 1e25])
def test_minimum_does_not_depend_on_the_scale_of_the_loss(scale):
    cubic = Cubic(*(jnp.float32(scale * x) for x in (0.09, -0.6, 0.49, 1.4)))
    np.testing.assert_allclose(segment.minimise(cubic), 0.3, atol=1e-3)
