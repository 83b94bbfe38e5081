from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.adapters import algebra
from potara_jax.merging import estimators, merges, weights
from potara_jax.merging.estimators import Client, Measured, segment_loss
from potara_jax.merging.likelihoods import LIKELIHOODS
from tests.helpers import assert_close, factors, normal

INPUTS, CLASSES, SAMPLES = 5, 3, 12
KEY = jax.random.key(2)
RNG = np.random.default_rng(3)
EXAMPLES = (
    normal(RNG, (SAMPLES, INPUTS)),
    jnp.asarray(RNG.integers(CLASSES, size=SAMPLES), jnp.int32),
)
FEDERATED, LOCAL = (
    {"one": factors(s, INPUTS, INPUTS), "two": factors(s + 1, INPUTS, CLASSES)}
    for s in (0, 10)
)


def logits(base, adapter, examples):
    delta = lambda path: algebra.delta(adapter[path])
    return base * jnp.tanh(examples[0] @ delta("one") / 3) @ delta("two")


def one_example(base, adapter, example):
    return logits(base, adapter, (example[0][None], None))[0]


def loss(base, adapter, examples):
    log_p = jax.nn.log_softmax(logits(base, adapter, examples))
    return -jnp.take_along_axis(log_p, examples[1][:, None], 1)[:, 0]


CLIENT = Client(
    jnp.float32(0.7),
    FEDERATED,
    LOCAL,
    EXAMPLES,
    jnp.ones(SAMPLES).at[-2:].set(0),
    jnp.float32(40),
    KEY,
)
AT = jax.jit(lambda w: segment_loss(loss, CLIENT)(w))


def measure(estimator, client=CLIENT):
    return jax.jit(estimator.measure)(client)


def test_the_constant_is_the_constant():
    assert float(measure(estimators.constant(0.3)).weight) == pytest.approx(0.3)


# --- Curvature -----------------------------------------------------------------------

EXACT = LIKELIHOODS["exact"](one_example)


@pytest.mark.parametrize("how", ["diagonal", "kronecker"])
def test_potara_is_the_closed_form_of_what_it_measured(how):
    damping = weights.relative(0.3)
    found = measure(estimators.potara(EXACT, damping, factorisation=how))
    expected = weights.potara_weight(found.curvature, damping, CLIENT.trained_on)
    assert 0 < float(found.weight) < 1
    assert float(found.weight) == pytest.approx(float(expected), abs=1e-5)


def test_both_factorisations_have_one_trace():
    of = lambda how: (
        measure(
            estimators.potara(EXACT, weights.relative(0.3), factorisation=how)
        ).curvature
    )
    diagonal, whole = of("diagonal"), of("kronecker")
    total = lambda tree: {p: e["m"].sum() for p, e in tree.items()}
    assert_close(total(whole.federated), total(diagonal.federated), atol=1e-3)
    assert_close(total(whole.local), total(diagonal.local), atol=1e-3)


def test_fisher_weights_by_hand():
    found = measure(estimators.fisher(EXACT, floor=0.01, normalise=False))
    f, own = (t["two"]["m"] for t in found.curvature[:2])
    assert_close(found.weight["two"]["m"], (f + 0.01) / (f + own + 0.02))


def test_normalised_fisher_weights_do_not_see_how_sharp_a_model_is():
    found = measure(estimators.fisher(EXACT))
    scaled = jax.tree.map(lambda x: 1000 * x, found.curvature.federated)
    other = found.curvature._replace(federated=scaled)
    weight = estimators.fisher_weight(other)
    assert_close(weight, found.weight, atol=1e-3)


def test_what_has_no_curvature_is_refused():
    with pytest.raises(ValueError, match="no curvature in space 'delta'"):
        estimators.potara(EXACT, weights.relative(0.1), space="delta")
    with pytest.raises(ValueError, match="no weight per parameter"):
        estimators.potara(
            EXACT, weights.relative(0.1), per="parameter", factorisation="kronecker"
        )


# --- The loss along the segment ------------------------------------------------------


def test_grid_and_soup_are_the_best_of_their_points():
    for estimator, points in ((estimators.grid(loss), 21), (estimators.soup(loss), 3)):
        grid = np.linspace(0, 1, points)
        best = grid[np.argmin([float(AT(np.float32(w))) for w in grid])]
        assert float(measure(estimator).weight) == pytest.approx(best, abs=1e-6)


def test_the_pooled_grid_is_the_best_for_all_clients():
    estimator = estimators.grid_pooled(loss, points=11)
    own = np.asarray(measure(estimator))
    other = own[::-1] * 3
    found = estimator.decide(jnp.stack([own, other]), jnp.array([10.0, 30.0]))
    mean = (10 * own + 30 * other) / 40
    best = np.linspace(0, 1, 11)[np.argmin(mean)]
    np.testing.assert_allclose(found.weight, [best, best], atol=1e-6)


@pytest.mark.parametrize("name", ["hermite_pooled", "hermite_bayes"])
def test_what_clients_decide_together_is_within_the_segment(name):
    estimator = getattr(estimators, name)(loss)
    cubics = jax.tree.map(lambda x: jnp.stack([x, x]), measure(estimator))
    found = estimator.decide(cubics, jnp.array([10.0, 10.0])).weight
    assert found.shape == (2,) and np.all((found >= 0) & (found <= 1))
    np.testing.assert_allclose(found[0], found[1])


@pytest.mark.parametrize("per", ["client", "module"])
def test_learned_weights_lose_less_than_those_they_start_from(per):
    found = measure(estimators.learned(loss, per=per, steps=60)).weight
    values = np.stack(jax.tree.leaves(found))
    assert len(values) == (1 if per == "client" else 2)
    assert np.all((values >= 0) & (values <= 1))
    assert float(AT(found)) < float(AT(jnp.float32(0.5)))


def test_a_learned_weight_is_where_the_grid_is():
    learned = measure(estimators.learned(loss, steps=200)).weight
    grid = measure(estimators.grid(loss, points=101)).weight
    assert float(AT(learned)) <= float(AT(grid)) + 1e-3


def test_lorahub_is_no_worse_than_nothing_and_within_its_bounds():
    weight = measure(estimators.lorahub(loss, bound=0.8)).weight
    assert max(map(abs, map(float, weight))) <= 0.8
    at = segment_loss(loss, CLIENT, "factor")
    cost = lambda w: float(at(w)) + 0.05 * np.abs(w).mean()
    assert cost(weight) <= cost((jnp.float32(0), jnp.float32(0))) + 1e-6


def test_padded_samples_change_no_weight():
    changed = (EXAMPLES[0].at[-2:].set(jnp.nan), EXAMPLES[1].at[-2:].set(0))
    client = CLIENT._replace(examples=changed)
    for estimator in (estimators.grid(loss), estimators.gauss_newton(logits)):
        found, expected = measure(estimator, client), measure(estimator)
        assert_close(found.weight, expected.weight, atol=1e-5)


# --- Gauss-Newton --------------------------------------------------------------------


def straight(base, adapter, examples):
    """Logits that are linear in every delta, so in the weights."""
    delta = lambda path: algebra.delta(adapter[path])
    return base * (examples[0] @ delta("one")[:, :CLASSES] + examples[0] @ delta("two"))


def test_a_newton_step_is_numpys():
    ridge = 0.2
    found = measure(estimators.gauss_newton(straight, steps=1, ridge=ridge)).weight
    at = lambda w: np.asarray(
        straight(
            CLIENT.base,
            merges.merge((FEDERATED, LOCAL), merges.pair({"one": w[0], "two": w[1]})),
            EXAMPLES,
        ),
        np.float64,
    )[:-2]
    z, labels = at((0.5, 0.5)), np.asarray(EXAMPLES[1])[:-2]
    columns = np.stack(
        [at((1.0, 0.5)) - at((0.0, 0.5)), at((0.5, 1.0)) - at((0.5, 0.0))], -1
    )
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    slope = np.einsum("nk,nkm->m", p - np.eye(CLASSES)[labels], columns) / len(z)
    hessian = sum(
        j.T @ (np.diag(q) - np.outer(q, q)) @ j for j, q in zip(columns, p, strict=True)
    ) / len(z) + ridge * np.eye(2)
    expected = np.clip(0.5 - np.linalg.solve(hessian, slope), 0, 1)
    np.testing.assert_allclose([found["one"], found["two"]], expected, atol=1e-3)


def test_a_strong_ridge_takes_halves():
    found = measure(estimators.gauss_newton(logits, ridge=1e6)).weight
    np.testing.assert_allclose([found["one"], found["two"]], 0.5, atol=1e-4)


def test_gauss_newton_lowers_the_loss():
    found = measure(estimators.gauss_newton(logits, ridge=0.01)).weight
    assert float(AT(found)) < float(AT(jnp.float32(0.5)))


# --- The bootstrap -------------------------------------------------------------------


def mean_of_samples(client: Client) -> Measured:
    """A weight that is the mean of the samples' first inputs."""
    share = client.weight / client.weight.sum()
    return Measured((share * client.examples[0][:, 0]).sum())


def test_the_bootstrap_of_a_mean_is_as_wide_as_its_error():
    size = 400
    x = normal(np.random.default_rng(0), (size, 1))
    client = CLIENT._replace(examples=(x,), weight=jnp.ones(size))
    estimator = estimators.Estimator("mean", mean_of_samples)
    interval = estimators.bootstrap(estimator, replicates=2000)
    low, high = jax.jit(interval)(client)
    error = float(x.std()) / np.sqrt(size)
    mean = float(x.mean())
    np.testing.assert_allclose(
        [low, high],
        [mean - 1.645 * error, mean + 1.645 * error],
        atol=0.1 * error + 3e-3,
    )


def test_padded_samples_are_never_drawn():
    counts = estimators._resampled(KEY, CLIENT.weight, 50)
    assert not np.any(counts[:, -2:])
    np.testing.assert_array_equal(counts.sum(1), 10)


def test_the_bootstrap_takes_gradients_once():
    estimator = estimators.potara(EXACT, weights.relative(0.3))
    program = lambda n: jax.make_jaxpr(estimators.bootstrap(estimator, replicates=n))
    tanh = lambda n: [
        line for line in str(program(n)(CLIENT)).splitlines() if " tanh " in line
    ]
    assert len(tanh(64)) == len(tanh(2)) > 0
    assert not any("[64," in line for line in tanh(64))


def test_an_interval_of_a_common_weight_is_refused():
    with pytest.raises(ValueError, match="'hermite_bayes' weighs clients together"):
        estimators.bootstrap(estimators.hermite_bayes(loss))


def test_a_search_over_parameters_is_refused():
    estimator = partial(estimators.learned, loss, per="parameter")
    with pytest.raises(ValueError, match="'parameter': use client or module"):
        estimator().measure(CLIENT)


def test_grid_pooled_takes_no_point_that_is_infinite_for_a_client():
    decide = estimators.grid_pooled(loss, points=3).decide
    losses = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, jnp.inf], [jnp.nan] * 3])
    np.testing.assert_array_equal(
        decide(losses, jnp.array([10, 90, 5])).weight, [0] * 3
    )
