import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potara_jax.merging import Curvature, closed_form, damping
from potara_jax.merging.closed_form import Traces
from tests.helpers import assert_close

FINE = np.linspace(0, 1, 2001)
EXAMPLES = jnp.float32(10.0)

few = settings(deadline=None, max_examples=25)
traces = st.floats(1e-3, 1e3)
unit = st.floats(0, 1)
best_weight = jax.jit(closed_form.best_weight)


def weight(a, b, c):
    return float(best_weight(Traces(*map(jnp.float32, (a, b, c)))))


# --- The closed form -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "c", "expected"),
    [
        (1, 3, 0, 0.75),
        (2, 1, 0.5, 0.25),
        (1, 1, 0, 0.5),
        (4, 4, 3, 0.5),
        (5, 2, 1, 0.2),
        (1e-30, 3e-30, 0, 0.75),
        (1e30, 3e30, 0, 0.75),
    ],
)
def test_the_closed_form_by_hand(a, b, c, expected):
    assert weight(a, b, c) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "c", "expected"),
    [
        (2, 2, 2, 0.5),
        (0, 0, 0, 0.5),
        (0, 3, 0, 1),
        (3, 0, 0, 0),
        (1, 3, 1, 1),
        (3, 1, 1, 0),
        (1, 4, 2, 1),
        (4, 1, 2, 0),
    ],
    ids=[
        "one model",
        "no variance at all",
        "federated is certain",
        "local is certain",
        "local adds nothing",
        "federated adds nothing",
        "cross above federated",
        "cross above local",
    ],
)
def test_the_closed_form_where_it_degenerates(a, b, c, expected):
    assert weight(a, b, c) == pytest.approx(expected, abs=1e-5)


@few
@given(traces, traces, unit)
def test_the_weight_minimises_the_merged_variance(a, b, fraction):
    c = fraction * min(a, b)
    merged = lambda w: w**2 * a + (1 - w) ** 2 * b + 2 * w * (1 - w) * c
    chosen = weight(a, b, c)
    assert 0 <= chosen <= 1
    assert merged(chosen) <= merged(FINE).min() * (1 + 1e-5)


@few
@given(traces, traces, unit)
def test_a_cross_trace_above_the_smaller_one_is_clamped(a, b, fraction):
    above = min(a, b) + fraction * abs(a - b)
    assert weight(a, b, above) == weight(a, b, min(a, b))


@few
@given(traces, traces, st.floats(0, 0.9), st.floats(1e-6, 1e6))
def test_scaling_all_traces_changes_nothing(a, b, fraction, scale):
    c = fraction * min(a, b)
    scaled = weight(scale * a, scale * b, scale * c)
    assert scaled == pytest.approx(weight(a, b, c), abs=1e-5)


@few
@given(traces, traces, st.floats(0, 0.9))
def test_swapping_the_models_swaps_the_weight(a, b, fraction):
    c = fraction * min(a, b)
    assert weight(a, b, c) + weight(b, a, c) == pytest.approx(1, abs=1e-5)


def test_the_closed_form_is_elementwise():
    batched = best_weight(Traces(jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0]), 0.5))
    assert_close(batched, np.array([2.5 / 3, 0.25]))


# --- Damping -------------------------------------------------------------------------


def positive(seed):
    rng = np.random.default_rng(seed)
    leaf = lambda *shape: np.float32(rng.exponential(size=shape) ** 2)
    return {"first": {"m": leaf(3, 3)}, "second": {"m": leaf(2, 4)}}


def with_zeros(tree):
    return jax.tree.map(lambda x: np.where(x < 0.3, np.float32(0), x), tree)


FEDERATED, LOCAL = with_zeros(positive(0)), with_zeros(positive(1))
CORRELATION = jax.tree.map(lambda x: np.float32(x / x.max()), positive(2))
ALL = np.concatenate([x.ravel() for x in jax.tree.leaves((FEDERATED, LOCAL))])


def curvature(federated=FEDERATED, local=LOCAL, rho=CORRELATION, square=2.0, apart=1.0):
    mean = np.mean([x for t in (federated, local) for x in flat(t)], dtype=np.float64)
    scalars = (jnp.float32(x) for x in (mean, square, apart))
    return Curvature(federated, local, rho, *scalars)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


CURVATURE = curvature()
RELATIVE = damping.relative(0.1)


def expected_variances(fn):
    return tuple(jax.tree.map(fn, tree) for tree in (FEDERATED, LOCAL))


def test_laplace_is_the_inverse_of_the_posterior_precision():
    actual = damping.laplace(0.5)(CURVATURE, EXAMPLES)
    assert_close(actual, expected_variances(lambda f: 1 / (10 * f + 0.5)))


def test_relative_adds_a_part_of_both_models_mean():
    floor = 0.1 * ALL.mean()
    actual = damping.relative(0.1)(CURVATURE, EXAMPLES)
    assert_close(actual, expected_variances(lambda f: 1 / (f + floor)))


def test_quantile_lifts_to_the_quantile_of_positive_entries():
    floor = np.quantile(ALL[ALL > 0], 0.4)
    assert (ALL == 0).any()
    actual = damping.quantile(0.4)(CURVATURE, EXAMPLES)
    assert_close(actual, expected_variances(lambda f: 1 / np.maximum(f, floor)))


def test_harmonic_is_the_inverse_of_a_modules_mean():
    floor = 0.1 * ALL.mean()
    actual = damping.harmonic(0.1)(CURVATURE, EXAMPLES)
    expected = expected_variances(
        lambda f: np.full_like(f, 1 / (f.mean(dtype=np.float64) + floor))
    )
    assert_close(actual, expected)


def test_harmonic_is_below_relative():
    traces_of = lambda variances: closed_form.variance_traces(
        CURVATURE, variances, EXAMPLES, per="client"
    )
    harmonic, relative = map(traces_of, (damping.harmonic(0.1), damping.relative(0.1)))
    assert float(harmonic.federated) < float(relative.federated)
    assert float(harmonic.local) < float(relative.local)


@pytest.mark.parametrize("name", ["relative", "quantile", "harmonic"])
def test_only_laplace_sees_the_number_of_examples(name):
    variances = damping.DAMPINGS[name](0.1)
    few_of_them, many = (variances(CURVATURE, n) for n in (1.0, 100.0))
    assert_close(few_of_them, many, atol=0)


def padded(tree, value=0.0):
    """Every array with a row and a column more."""
    pad = lambda x: np.pad(x, ((0, 1), (0, 1)), constant_values=value)
    return jax.tree.map(pad, tree)


@pytest.mark.parametrize("name", damping.DAMPINGS)
@pytest.mark.parametrize("per", ["client", "module"])
def test_directions_that_no_adapter_uses_change_no_weight(name, per):
    used = padded(jax.tree.map(lambda x: np.ones(x.shape, bool), FEDERATED), False)
    more = curvature(*map(padded, (FEDERATED, LOCAL, CORRELATION)))
    more = more._replace(mean=CURVATURE.mean, used=used)
    weight = lambda c: closed_form.potara_weight(
        c, damping.DAMPINGS[name](0.3), EXAMPLES, per=per
    )
    assert_close(weight(more), weight(CURVATURE))
    assert np.abs(flat(weight(CURVATURE)) - 0.5).max() > 1e-3


@pytest.mark.parametrize("name", damping.DAMPINGS)
@pytest.mark.parametrize("per", ["client", "module"])
def test_models_without_any_curvature_get_a_half_each(name, per):
    zero = jax.tree.map(np.zeros_like, FEDERATED)
    variances = damping.DAMPINGS[name](0.1)
    actual = closed_form.potara_weight(
        curvature(zero, zero, zero), variances, EXAMPLES, per=per
    )
    for weight in jax.tree.leaves(actual):
        assert float(weight) == pytest.approx(0.5)


@pytest.mark.parametrize("name", damping.DAMPINGS)
def test_the_more_certain_model_gets_the_larger_weight(name):
    sharper = jax.tree.map(lambda x: 4 * x + 1, LOCAL)
    variances = damping.DAMPINGS[name](0.1)
    independent = jax.tree.map(np.zeros_like, LOCAL)
    actual = closed_form.potara_weight(
        curvature(sharper, LOCAL, independent), variances, EXAMPLES
    )
    assert 0.5 < float(actual) < 1


# --- One weight a client, a module, a parameter --------------------------------------


@pytest.mark.parametrize("name", ["relative", "quantile", "harmonic"])
def test_the_curvatures_unit_changes_nothing(name):
    variances = damping.DAMPINGS[name](0.1)
    smaller = [jax.tree.map(lambda x: x * np.float32(1e-21), t) for t in CURVATURE[:2]]
    actual, expected = (
        closed_form.potara_weight(curvature(*trees), variances, EXAMPLES)
        for trees in (smaller, CURVATURE[:2])
    )
    assert float(actual) == pytest.approx(float(expected), abs=1e-4)


def damped_traces(per):
    return closed_form.variance_traces(
        CURVATURE, damping.relative(0.1), EXAMPLES, per=per
    )


def test_traces_of_a_parameter_are_its_variances():
    actual = damped_traces("parameter")["second"]["m"]
    floor = 0.1 * ALL.mean()
    s_f, s_l = (1 / (tree["second"]["m"] + floor) for tree in (FEDERATED, LOCAL))
    rho = CORRELATION["second"]["m"]
    assert_close(actual, Traces(s_f, s_l, rho * np.sqrt(s_f * s_l)))


def test_traces_of_a_module_sum_over_its_parameters():
    by_parameter, by_module = damped_traces("parameter"), damped_traces("module")
    summed = {
        path: Traces(*(x.sum() for x in entry["m"]))
        for path, entry in by_parameter.items()
    }
    assert_close(by_module, summed)


def test_traces_of_a_client_sum_over_its_modules():
    by_module = damped_traces("module").values()
    summed = Traces(*(sum(x) for x in zip(*by_module, strict=True)))
    assert_close(damped_traces("client"), summed)


@pytest.mark.parametrize("per", ["client", "module", "parameter"])
def test_potaras_weight_is_the_closed_form_of_the_traces(per):
    actual = closed_form.potara_weight(
        CURVATURE, damping.relative(0.1), EXAMPLES, per=per
    )
    expected = jax.tree.map(
        lambda t: (
            (t.local - np.minimum(t.cross, t.local))
            / (t.federated + t.local - 2 * t.cross)
        ),
        damped_traces(per),
        is_leaf=lambda x: isinstance(x, Traces),
    )
    within = jax.tree.map(lambda w: np.clip(w, 0, 1), expected)
    assert_close(actual, within, atol=1e-3)


# --- The prior's precision -----------------------------------------------------------


def log_evidence(tau, actual, examples):
    """The log marginal likelihood of both models' Laplace posteriors, in float64."""
    fisher = np.float64(np.concatenate([flat(actual.federated), flat(actual.local)]))
    precision = np.log(float(examples) * fisher + tau).sum()
    return 0.5 * (fisher.size * np.log(tau) - precision - tau * float(actual.square))


@pytest.mark.parametrize("square", [1e-3, 2.0, 50.0])
def test_the_evidence_is_greatest_at_its_precision(square):
    actual = curvature(square=square)
    tau = float(jax.jit(damping.evidence_precision)(actual, EXAMPLES))
    grid = np.exp(np.linspace(-12, 12, 4001))
    best = grid[np.argmax([log_evidence(t, actual, EXAMPLES) for t in grid])]
    assert tau == pytest.approx(best, rel=1e-2)


def test_evidence_is_laplace_at_that_precision():
    tau = float(damping.evidence_precision(CURVATURE, EXAMPLES))
    expected = damping.laplace(3 * tau)(CURVATURE, EXAMPLES)
    assert_close(damping.evidence(3.0)(CURVATURE, EXAMPLES), expected)


# --- The bias, and the damping's say -------------------------------------------------


def test_models_that_are_no_further_apart_than_their_spread_have_no_bias():
    near = curvature(apart=1e-6)
    actual = closed_form.bias_aware_weight(near, damping.laplace(1.0), EXAMPLES)
    expected = closed_form.potara_weight(near, damping.laplace(1.0), EXAMPLES)
    assert float(actual) == pytest.approx(float(expected), abs=1e-6)


def test_the_bias_aware_weight_by_hand():
    far = curvature(apart=500.0)
    traces = closed_form.variance_traces(far, damping.laplace(1.0), EXAMPLES)
    assert traces.federated + traces.local - 2 * traces.cross < 500
    actual = closed_form.bias_aware_weight(far, damping.laplace(1.0), EXAMPLES)
    expected = (traces.local - traces.cross) / 500
    assert float(actual) == pytest.approx(float(expected), rel=1e-4)


def test_sensitivity_is_the_larger_move_within_a_decade():
    at = lambda v: float(
        closed_form.potara_weight(CURVATURE, damping.relative(v), EXAMPLES)
    )
    expected = max(abs(at(0.03) - at(0.3)), abs(at(3.0) - at(0.3)))
    actual = closed_form.sensitivity(CURVATURE, damping.relative, 0.3, EXAMPLES)
    assert expected > 1e-3
    assert float(actual) == pytest.approx(expected, abs=1e-5)
