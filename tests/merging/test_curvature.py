from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.merging import likelihoods
from potara_jax.merging.curvature import Curvature, curvature, real
from tests.helpers import assert_close, factors, normal

INPUTS, CLASSES, SAMPLES = 4, 3, 8
KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
EXAMPLES = (
    normal(RNG, (SAMPLES, INPUTS)),
    jnp.asarray(RNG.integers(CLASSES, size=SAMPLES), jnp.int32),
)
KINDS = {
    "empirical": likelihoods.empirical,
    "exact": likelihoods.exact,
    "sampled": partial(likelihoods.sampled, draws=3),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


FEDERATED, LOCAL = ({"body": factors(s, INPUTS, CLASSES)} for s in (0, 10))
BASE = jnp.float32(0.5)


def logits(base, adapter, example):
    entry = adapter["body"]
    return base * jnp.tanh(example[0] @ entry["a"]) @ entry["b"]


def measure(kind, federated, local, examples, count, chunk):
    likelihood = KINDS[kind](logits)
    return curvature(
        lambda t, example, key: likelihood(BASE, t, example, key),
        *(federated, local, examples, real(examples, count), KEY),
        chunk=chunk,
    )


compiled = jax.jit(measure, static_argnames=("kind", "chunk"))


def measured(
    kind,
    federated=FEDERATED,
    local=LOCAL,
    examples=EXAMPLES,
    count=SAMPLES,
    chunk=3,
    measure=compiled,
):
    """One compilation for the same kind, shapes and chunk."""
    return measure(kind, federated, local, examples, count, chunk)


# --- Against a loop over samples -----------------------------------------------------


def labels_and_weights(kind, log_p, label, key):
    """Which labels a likelihood looks at, and the root of the weight of each."""
    if kind == "empirical":
        return [label], [1.0]
    if kind == "exact":
        return range(CLASSES), np.sqrt(np.exp(log_p))
    noise = jax.random.gumbel(key, (3, CLASSES))
    return np.argmax(log_p + noise, axis=-1), [3**-0.5] * 3


@jax.jit
def log_p_and_gradients(adapter, x):
    log_p = lambda t: jax.nn.log_softmax(logits(BASE, t, (x, None)))
    rows = [jax.grad(lambda t, q=q: log_p(t)[q])(adapter) for q in range(CLASSES)]
    return log_p(adapter), rows


def scores(kind, adapter, index):
    """Scores of one sample as a matrix, a row a label, with the rows' weights."""
    log_p, gradients = log_p_and_gradients(adapter, EXAMPLES[0][index])
    flat = [np.concatenate([x.ravel() for x in jax.tree.leaves(g)]) for g in gradients]
    key = jax.random.fold_in(KEY, index)
    labels, roots = labels_and_weights(kind, log_p, EXAMPLES[1][index], key)
    return np.stack([r * flat[q] for q, r in zip(labels, roots, strict=True)]), roots


def naive(kind, count=SAMPLES):
    """Mean squared scores of both models and Pearson's correlation, in float64."""
    size = sum(x.size for x in jax.tree.leaves(FEDERATED))
    square, mean, cross = np.zeros((2, size)), np.zeros((2, size)), np.zeros(size)
    for index in range(count):
        both = [scores(kind, adapter, index) for adapter in (FEDERATED, LOCAL)]
        for model, (rows, roots) in enumerate(both):
            square[model] += (rows**2).sum(0) / count
            mean[model] += np.asarray(roots) @ rows / count
        cross += (both[0][0] * both[1][0]).sum(0) / count
    variance = square - mean**2
    rho = (cross - mean[0] * mean[1]) / np.sqrt(variance[0] * variance[1])
    return square[0], square[1], np.clip(rho, 0, 1)


def flattened(actual: Curvature):
    """Both Fishers and the correlation, each as a vector."""
    flat = lambda tree: np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])
    return tuple(flat(tree) for tree in actual[:3])


@each_kind
def test_curvature_is_a_loop_over_samples(kind):
    assert_close(flattened(measured(kind)), naive(kind), atol=1e-4)


@each_kind
def test_only_the_first_samples_count(kind):
    assert_close(flattened(measured(kind, count=5)), naive(kind, count=5), atol=1e-4)


def test_the_likelihoods_differ():
    actual = [flattened(measured(kind))[0] for kind in KINDS]
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        assert np.abs(actual[first] - actual[second]).max() > 1e-2


# --- Against the Fisher of a linear softmax model ------------------------------------


W = normal(np.random.default_rng(4), (INPUTS, CLASSES))


def linear(base, adapter, example):
    del base
    return example[0] @ adapter["head"]["kernel"]


def linear_curvature(likelihood):
    adapter = {"head": {"kernel": W}}
    actual = curvature(
        lambda t, example, key: likelihood(None, t, example, key),
        *(adapter, adapter),
        *(EXAMPLES, jnp.ones(SAMPLES), KEY),
    )
    x = np.asarray(EXAMPLES[0], np.float64)
    p = np.asarray(jax.nn.softmax(x @ adapter["head"]["kernel"]), np.float64)
    analytic = np.einsum("nd,nk->dk", x**2, p * (1 - p)) / SAMPLES
    return actual.federated["head"]["kernel"], analytic


def test_the_exact_fisher_is_the_analytic_one():
    assert_close(*linear_curvature(likelihoods.exact(linear)))


def test_many_draws_approach_the_exact_fisher():
    assert_close(*linear_curvature(likelihoods.sampled(linear, draws=4000)), atol=0.05)


def test_the_empirical_fisher_of_a_linear_model_sees_the_labels():
    actual, analytic = linear_curvature(likelihoods.empirical(linear))
    assert np.abs(actual - analytic).max() > 0.1 * analytic.max()


# --- The correlation -----------------------------------------------------------------


@each_kind
def test_correlations_are_between_zero_and_one(kind):
    rho = flattened(measured(kind))[2]
    assert rho.min() >= 0
    assert rho.max() <= 1
    assert ((rho > 0) & (rho < 1)).any()


@each_kind
def test_identical_models_correlate_fully(kind):
    actual = measured(kind, local=FEDERATED)
    assert_close(actual.local, actual.federated, atol=1e-6)
    np.testing.assert_allclose(flattened(actual)[2], 1, atol=1e-4)


def test_opposite_scores_do_not_correlate():
    likelihood = likelihoods.exact(linear)
    mirrored = lambda t, example, key: likelihood(
        None, {"head": {"kernel": t["sign"] * t["kernel"]}}, example, key
    )
    upright = {"kernel": W, "sign": jnp.ones(())}
    mirror = {"kernel": -W, "sign": -jnp.ones(())}
    actual = curvature(mirrored, upright, mirror, EXAMPLES, jnp.ones(SAMPLES), KEY)
    assert_close(actual.local["kernel"], actual.federated["kernel"])
    assert not np.any(actual.correlation["kernel"])


def test_parameters_without_a_score_do_not_correlate():
    unused = {"unused": {"kernel": jnp.ones((2, 2))}}
    actual = measured("empirical", FEDERATED | unused, LOCAL | unused)
    for tree in actual[:3]:
        assert not np.any(tree["unused"]["kernel"])


def scaled_curvature(scale):
    """Curvature of a model whose scores are all multiplied by `scale`."""
    likelihood = likelihoods.exact(linear)
    return curvature(
        lambda t, example, key: likelihood(
            None, {"head": {"kernel": W + scale * t["kernel"]}}, example, key
        ),
        *({"kernel": jnp.ones((INPUTS, CLASSES))},) * 2,
        *(EXAMPLES, jnp.ones(SAMPLES), KEY),
    )


def test_small_scores_of_identical_models_correlate_fully():
    actual = scaled_curvature(1e-10)
    assert np.all(actual.federated["kernel"] > 0)
    np.testing.assert_allclose(actual.correlation["kernel"], 1, atol=1e-4)


@pytest.mark.parametrize("sample", range(SAMPLES))
def test_scores_without_a_variance_do_not_correlate(sample):
    repeated = jax.tree.map(lambda x: jnp.stack([x[sample]] * SAMPLES), EXAMPLES)
    actual = measured("empirical", examples=repeated, count=SAMPLES - 1)
    assert not np.any(flattened(actual)[2])


# --- Chunks, padding, compilation ----------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "chunk"), [("exact", 8), ("sampled", 1), ("exact", 20)]
)
def test_the_chunk_changes_nothing(kind, chunk):
    actual, expected = measured(kind, chunk=chunk), measured(kind)
    assert_close(actual, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["exact", "sampled"])
def test_padding_changes_nothing_to_the_bit(kind):
    rng = np.random.default_rng(1)
    noise = (normal(rng, (4, INPUTS)), jnp.zeros(4, jnp.int32))
    padded = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), EXAMPLES, noise)
    actual, expected = measured(kind, examples=padded), measured(kind)
    for x, y in zip(flattened(actual), flattened(expected), strict=True):
        np.testing.assert_array_equal(x, y)


def test_an_empty_client_has_no_curvature():
    for tree in flattened(measured("exact", count=0)):
        assert not np.any(tree)


def test_compiled_or_not_is_the_same():
    actual = measured("exact", measure=measure)
    assert_close(actual, measured("exact"), atol=1e-4)


def test_clients_are_measured_each_on_its_samples():
    mapped = jax.vmap(lambda count: measured("exact", count=count))
    actual = mapped(jnp.array([3, 8]))
    for client, count in enumerate((3, 8)):
        one = jax.tree.map(lambda x, i=client: x[i], actual)
        assert_close(one, measured("exact", count=count), atol=1e-4)


def test_gradients_are_accumulated_in_float32():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), FEDERATED)
    actual = measured("exact", half, half)
    assert {x.dtype for x in jax.tree.leaves(actual)} == {jnp.dtype(jnp.float32)}


# --- Scalars, and weights of samples -------------------------------------------------


def test_the_scalars_are_those_of_both_models():
    actual = measured("exact")
    federated, local, _ = flattened(actual)
    assert_close(actual.mean, np.mean([federated, local]))
    theta = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)])
        for t in (FEDERATED, LOCAL)
    ]
    assert_close(actual.square, np.sum(np.square(theta)))
    assert_close(actual.distance, np.sum((theta[0] - theta[1]) ** 2))


def weighed(weight, examples=EXAMPLES):
    likelihood = likelihoods.exact(logits)
    at = lambda t, example, key: likelihood(BASE, t, example, key)
    return curvature(at, FEDERATED, LOCAL, examples, weight, KEY, chunk=3)


def test_a_sample_that_weighs_two_counts_twice():
    twice = jnp.ones(SAMPLES).at[0].set(2.0)
    repeated = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), EXAMPLES)
    expected = weighed(jnp.ones(SAMPLES + 1), repeated)
    assert_close(weighed(twice), expected, atol=1e-4)


def test_gradients_are_taken_once_for_many_weights():
    one, many = (
        str(jax.make_jaxpr(jax.vmap(weighed))(jnp.ones((n, SAMPLES)))) for n in (1, 64)
    )
    tanh = [line for line in many.splitlines() if " tanh " in line]
    assert tanh and not any("[64," in line for line in tanh)
    assert len(tanh) == sum(" tanh " in line for line in one.splitlines())
