from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax import merging
from potara_jax.adapters import algebra
from potara_jax.merging import registry
from potara_jax.merging.segment import segment_loss
from tests.helpers import assert_close
from tests.merging.toy import (
    CLASSES,
    CLIENT,
    EXAMPLES,
    FEDERATED,
    LOCAL,
    logits,
    loss,
    one_example,
)

AT = jax.jit(lambda w: segment_loss(loss, CLIENT)(w))


def measure(estimator, client=CLIENT):
    return jax.jit(estimator.measure)(client)


def test_the_constant_is_the_constant():
    assert float(measure(merging.constant(0.3)).weight) == pytest.approx(0.3)


# --- Curvature -----------------------------------------------------------------------

EXACT = merging.exact(one_example)


@pytest.mark.parametrize("factorisation", ["diagonal", "kronecker"])
def test_potara_is_the_closed_form_of_what_it_measured(factorisation):
    damping = merging.relative(0.3)
    actual = measure(merging.potara(EXACT, damping, factorisation=factorisation))
    expected = merging.potara_weight(actual.curvature, damping, CLIENT.trained_on)
    assert 0 < float(actual.weight) < 1
    assert float(actual.weight) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("factorisation", ["diagonal", "kronecker"])
@pytest.mark.parametrize("space", ["core", "knots"])
def test_ranks_that_no_adapter_uses_change_no_weight(space, factorisation):
    pad = lambda entry: {
        "a": jnp.pad(entry["a"], ((0, 0), (0, 1))),
        "b": jnp.pad(entry["b"], ((0, 1), (0, 0))),
    }
    only = lambda adapter: {"one": adapter["one"]}
    two = lambda adapter: adapter | {"two": FEDERATED["two"]}
    padded = lambda adapter: {"one": pad(adapter["one"])}
    likelihood = merging.exact(lambda base, x, e: one_example(base, two(x), e))
    estimator = merging.potara(
        likelihood, merging.relative(0.3), space=space, factorisation=factorisation
    )
    exact, more = (
        CLIENT._replace(federated=change(FEDERATED), local=change(LOCAL))
        for change in (only, padded)
    )
    actual = float(measure(estimator, more).weight)
    assert actual == pytest.approx(float(measure(estimator, exact).weight), abs=1e-4)
    assert abs(actual - 0.5) > 0.01


def test_both_factorisations_have_one_trace():
    of = lambda factorisation: (
        measure(
            merging.potara(EXACT, merging.relative(0.3), factorisation=factorisation)
        ).curvature
    )
    diagonal, whole = of("diagonal"), of("kronecker")
    total = lambda tree: {p: e["m"].sum() for p, e in tree.items()}
    assert_close(total(whole.federated), total(diagonal.federated), atol=1e-3)
    assert_close(total(whole.local), total(diagonal.local), atol=1e-3)


def test_fisher_weights_by_hand():
    actual = measure(merging.fisher(EXACT, floor=0.01, normalise=False))
    f, other = (t["two"]["m"] for t in actual.curvature[:2])
    assert_close(actual.weight["two"]["m"], (f + 0.01) / (f + other + 0.02))


@pytest.mark.parametrize("space", ["core", "knots", "factor"])
def test_fisher_averages_modules_trained_whole_unless_asked(space):
    head = {"bias": jnp.arange(3.0), "kernel": jnp.eye(3)}
    both = (FEDERATED | {"head": head}, LOCAL | {"head": jax.tree.map(jnp.sin, head)})
    with_head = merging.exact(
        lambda base, x, e: (
            one_example(base, x, e) @ x["head"]["kernel"] + x["head"]["bias"]
        )
    )
    client = CLIENT._replace(federated=both[0], local=both[1])
    actual = measure(merging.fisher(with_head, space=space), client)
    asked = measure(merging.fisher(with_head, space=space, whole=True), client)
    for x in jax.tree.leaves(actual.weight["head"]):
        np.testing.assert_array_equal(x, 0.5)
    assert np.abs(np.asarray(asked.weight["head"]["kernel"]) - 0.5).max() > 0.1
    only = {p: actual.curvature.federated[p] for p in FEDERATED}
    others = {p: actual.curvature.local[p] for p in FEDERATED}
    alone = actual.curvature._replace(federated=only, local=others)
    assert_close({p: actual.weight[p] for p in FEDERATED}, merging.fisher_weight(alone))


def test_normalised_fisher_weights_do_not_see_how_sharp_a_model_is():
    actual = measure(merging.fisher(EXACT))
    scaled = jax.tree.map(lambda x: 1000 * x, actual.curvature.federated)
    other = actual.curvature._replace(federated=scaled)
    weight = merging.fisher_weight(other)
    assert_close(weight, actual.weight, atol=1e-3)


def test_what_has_no_curvature_is_refused():
    with pytest.raises(ValueError, match="no curvature in space 'delta'"):
        merging.potara(EXACT, merging.relative(0.1), space="delta")
    with pytest.raises(ValueError, match="no weight per parameter"):
        merging.potara(
            EXACT, merging.relative(0.1), per="parameter", factorisation="kronecker"
        )


# --- The loss along the segment ------------------------------------------------------


def test_grid_and_soup_are_the_best_of_their_points():
    for estimator, points in ((merging.grid(loss), 21), (merging.soup(loss), 3)):
        grid = np.linspace(0, 1, points)
        best = grid[np.argmin([float(AT(np.float32(w))) for w in grid])]
        assert float(measure(estimator).weight) == pytest.approx(best, abs=1e-6)


def test_the_pooled_grid_is_the_best_for_all_clients():
    estimator = merging.grid_pooled(loss, points=11)
    one = np.asarray(measure(estimator))
    other = one[::-1] * 3
    actual = estimator.decide(jnp.stack([one, other]), jnp.array([10.0, 30.0]))
    mean = (10 * one + 30 * other) / 40
    best = np.linspace(0, 1, 11)[np.argmin(mean)]
    np.testing.assert_allclose(actual.weight, [best, best], atol=1e-6)


@pytest.mark.parametrize("name", ["hermite_pooled", "hermite_bayes"])
def test_what_clients_decide_together_is_within_the_segment(name):
    estimator = registry.weights()[name].make(loss)
    cubics = jax.tree.map(lambda x: jnp.stack([x, x]), measure(estimator))
    actual = estimator.decide(cubics, jnp.array([10.0, 10.0])).weight
    assert actual.shape == (2,) and np.all((actual >= 0) & (actual <= 1))
    np.testing.assert_allclose(actual[0], actual[1])


@pytest.mark.parametrize("per", ["client", "module"])
def test_learned_weights_lose_less_than_those_they_start_from(per):
    actual = measure(merging.learned(loss, per=per, steps=60)).weight
    values = np.stack(jax.tree.leaves(actual))
    assert len(values) == (1 if per == "client" else 2)
    assert np.all((values >= 0) & (values <= 1))
    assert float(AT(actual)) < float(AT(jnp.float32(0.5)))


def test_a_learned_weight_is_where_the_grid_is():
    learned = measure(merging.learned(loss, steps=200)).weight
    grid = measure(merging.grid(loss, points=101)).weight
    assert float(AT(learned)) <= float(AT(grid)) + 1e-3


def test_lorahub_is_no_worse_than_nothing_and_within_its_bounds():
    weight = measure(merging.lorahub(loss, bound=0.8)).weight
    values = np.array(jax.tree.leaves(weight)).reshape(2, 4)
    assert np.abs(values).max() <= 0.8
    assert (values == values[:, :1]).all()  # one weight for all factors of an adapter
    at = segment_loss(loss, CLIENT, "factor")
    cost = lambda w: float(at(w)) + 0.05 * np.abs(jax.tree.leaves(w)).mean()
    zero = jax.tree.map(jnp.zeros_like, weight)
    assert cost(weight) <= cost(zero) + 1e-6


def test_lorahubs_weights_multiply_both_factors():
    weight = measure(merging.lorahub(loss)).weight
    first, second = (jax.tree.leaves(w)[0] for w in weight)
    both = CLIENT.federated, CLIENT.local
    out = merging.merge(both, weight, space="factor")["one"]
    for name in "ab":
        expected = first * both[0]["one"][name] + second * both[1]["one"][name]
        assert_close(out[name], expected)


def test_padded_samples_change_no_weight():
    changed = (EXAMPLES[0].at[-2:].set(jnp.nan), EXAMPLES[1].at[-2:].set(0))
    client = CLIENT._replace(examples=changed)
    for estimator in (merging.grid(loss), merging.gauss_newton(logits)):
        actual, expected = measure(estimator, client), measure(estimator)
        assert_close(actual.weight, expected.weight, atol=1e-5)


# --- Gauss-Newton --------------------------------------------------------------------


def straight(base, adapter, examples):
    """Logits that are linear in every delta, so in the weights."""
    delta = lambda path: algebra.delta(adapter[path])
    return base * (examples[0] @ delta("one")[:, :CLASSES] + examples[0] @ delta("two"))


def test_a_newton_step_is_numpys():
    ridge = 0.2
    actual = measure(merging.gauss_newton(straight, steps=1, ridge=ridge)).weight
    at = lambda w: np.asarray(
        straight(
            CLIENT.base,
            merging.merge((FEDERATED, LOCAL), merging.pair({"one": w[0], "two": w[1]})),
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
    np.testing.assert_allclose([actual["one"], actual["two"]], expected, atol=1e-3)


def test_a_strong_ridge_takes_halves():
    actual = measure(merging.gauss_newton(logits, ridge=1e6)).weight
    np.testing.assert_allclose([actual["one"], actual["two"]], 0.5, atol=1e-4)


def test_gauss_newton_lowers_the_loss():
    actual = measure(merging.gauss_newton(logits, ridge=0.01)).weight
    assert float(AT(actual)) < float(AT(jnp.float32(0.5)))


def test_a_search_over_parameters_is_refused():
    estimator = partial(merging.learned, loss, per="parameter")
    with pytest.raises(ValueError, match="'parameter': use client or module"):
        estimator().measure(CLIENT)


def test_grid_pooled_takes_no_point_that_is_infinite_for_a_client():
    decide = merging.grid_pooled(loss, points=3).decide
    losses = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, jnp.inf], [jnp.nan] * 3])
    np.testing.assert_array_equal(
        decide(losses, jnp.array([10, 90, 5])).weight, [0] * 3
    )
