import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.merging.curvature import curvature
from potara_jax.merging.kronecker import kronecker
from tests.helpers import assert_close, normal

ROWS, COLUMNS, SAMPLES = 3, 4, 6
KEY = jax.random.key(0)


def scored_by(scores):
    """A likelihood whose score of sample `i` is `scores[i]`, whatever the model."""

    def likelihood(theta, example, key):
        return (theta["m"] * scores[example]).sum()[None], jnp.ones(1)

    return likelihood


def fishers(factorise, scores, other=None):
    theta = {"m": jnp.ones((ROWS, COLUMNS))}
    examples, weight = jnp.arange(len(scores)), jnp.ones(len(scores))
    actual = jax.jit(
        lambda: factorise(
            scored_by(scores), theta, theta, examples, weight, KEY, chunk=4
        )
    )()
    return actual


def grid_scores():
    """`u_i v_j^T` for all pairs: the Fisher is exactly a Kronecker product."""
    rng = np.random.default_rng(0)
    u, v = normal(rng, (5, ROWS)), normal(rng, (7, COLUMNS))
    return jnp.einsum("ir,jc->ijrc", u, v).reshape(-1, ROWS, COLUMNS), u, v


def test_the_eigenvalues_of_a_kronecker_fisher_are_exact():
    scores, _, _ = grid_scores()
    flat = np.asarray(scores, np.float64).reshape(len(scores), -1)
    expected = np.linalg.eigvalsh(flat.T @ flat / len(flat))[::-1]
    actual = fishers(kronecker, scores)
    eigenvalues = np.sort(np.ravel(actual.federated["m"]))[::-1]
    assert_close(eigenvalues, expected, atol=1e-4)
    assert_close(actual.local, actual.federated, atol=1e-6)


def test_the_trace_is_that_of_the_diagonal():
    scores = normal(np.random.default_rng(1), (SAMPLES, ROWS, COLUMNS))
    whole, diagonal = fishers(kronecker, scores), fishers(curvature, scores)
    assert_close(whole.federated["m"].sum(), diagonal.federated["m"].sum())
    assert_close(whole.mean, diagonal.mean)
    assert_close(whole.square, diagonal.square)


def test_one_model_twice_correlates_fully_and_no_score_does_not():
    scores = normal(np.random.default_rng(1), (SAMPLES, ROWS, COLUMNS))
    np.testing.assert_allclose(
        fishers(kronecker, scores).correlation["m"], 1, rtol=1e-4
    )
    none = fishers(kronecker, jnp.zeros((SAMPLES, ROWS, COLUMNS)))
    assert not np.any(none.federated["m"]) and not np.any(none.correlation["m"])


def test_vectors_count_as_one_row():
    theta = {"bias": jnp.ones(COLUMNS)}
    scores = normal(np.random.default_rng(2), (SAMPLES, COLUMNS))
    likelihood = lambda t, i, key: ((t["bias"] * scores[i]).sum()[None], jnp.ones(1))
    examples, weight = jnp.arange(SAMPLES), jnp.ones(SAMPLES)
    actual = kronecker(likelihood, theta, theta, examples, weight, KEY)
    expected = np.linalg.eigvalsh(np.float64(scores.T @ scores) / SAMPLES)[::-1]
    assert_close(actual.federated["bias"], expected[None], atol=1e-4)
