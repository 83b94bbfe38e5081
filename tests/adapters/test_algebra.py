from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potara_jax.adapters import algebra
from tests.helpers import assert_close, dense, factors, gauge, normal, pick, regauged

seeds = st.integers(0, 2**16)
few = settings(deadline=None, max_examples=20)
truncate_to_2 = jax.jit(partial(algebra.truncate, rank=2))
joint_basis = jax.jit(algebra.joint_basis)


@jax.jit
def cores(first, second):
    basis = joint_basis(first, second)
    return [algebra.coordinates(basis, entry) for entry in (first, second)]


def dense_truncation(matrix, rank):
    u, sigma, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[..., :rank] * sigma[..., None, :rank]) @ v[..., :rank, :]


# --- Deltas and concatenation --------------------------------------------------------


def test_delta_multiplies_a_core_in():
    entry = factors(0) | {"m": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    assert_close(algebra.delta(entry), dense(entry))


def test_plain_multiplies_the_core_into_the_left_factor():
    entry = factors(0) | {"m": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    plain = algebra.plain(entry)
    assert set(plain) == {"a", "b"}
    assert_close(dense(plain), dense(entry))


def test_plain_keeps_factors_without_a_core():
    entry = factors(0)
    jax.tree.map(np.testing.assert_array_equal, algebra.plain(entry), entry)


def test_concatenation_is_the_sum_of_deltas():
    first, second = factors(0, rank=2, lead=(3,)), factors(1, rank=3, lead=(3,))
    both = algebra.concatenate(first, second)
    assert both["a"].shape == (3, 6, 5)
    assert both["b"].shape == (3, 5, 5)
    assert_close(dense(both), dense(first) + dense(second))


# --- Matrices that are not finite ----------------------------------------------------


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_gives_nan_and_leaves_the_other_matrices_alone(bad):
    """LAPACK's SVD of a matrix with an infinity does not return."""
    square = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    broken = square.copy()
    broken[1, 0, 2] = bad
    for decompose in (algebra.svd, algebra.qr, lambda x: (algebra.solve(x, x),)):
        expected, actual = (jax.jit(decompose)(x) for x in (square, broken))
        for x, y in zip(expected, actual, strict=True):
            assert np.isnan(y[1]).all()
            np.testing.assert_array_equal(y[::2], x[::2])


@pytest.mark.parametrize("side", ["matrix", "target"])
def test_a_solution_is_nan_where_either_side_is_not_finite(side):
    sides = {"matrix": np.eye(3, dtype=np.float32), "target": np.ones((3, 2), "f4")}
    sides[side][0, 1] = np.inf
    assert np.isnan(algebra.solve(**sides)).all()


# --- Truncation ----------------------------------------------------------------------


@few
@given(seeds)
def test_truncation_is_the_dense_svds(seed):
    entry = factors(seed, inputs=8, outputs=7, rank=4)
    truncated = truncate_to_2(entry)
    assert truncated["a"].shape == (8, 2)
    assert truncated["b"].shape == (2, 7)
    assert_close(dense(truncated), dense_truncation(dense(entry), 2), atol=2e-5)


def test_truncation_to_the_own_rank_keeps_the_delta():
    entry = factors(3)
    assert_close(dense(truncate_to_2(entry)), dense(entry))


def test_truncation_gives_both_sides_the_root_of_the_singular_values():
    entry = truncate_to_2(factors(4, rank=4))
    sigma = np.linalg.svd(dense(entry), compute_uv=False)[:2]
    assert_close(entry["a"].T @ entry["a"], np.diag(sigma))
    assert_close(entry["b"] @ entry["b"].T, np.diag(sigma))


def test_truncation_takes_leading_axes_one_matrix_at_a_time():
    entry = factors(5, rank=3, lead=(2, 3))
    truncated = truncate_to_2(entry)
    assert_close(dense(truncated), dense_truncation(dense(entry), 2))


def test_truncation_under_vmap_and_jit_is_the_batched_one():
    entry = factors(6, rank=3, lead=(4,))
    mapped = jax.jit(jax.vmap(partial(algebra.truncate, rank=2)))(entry)
    assert_close(dense(mapped), dense(truncate_to_2(entry)))


@pytest.mark.parametrize("rank", [0, 3])
def test_truncation_refuses_a_rank_that_does_not_fit(rank):
    with pytest.raises(ValueError, match=f"rank 2 to rank {rank}"):
        algebra.truncate(factors(0, rank=2), rank=rank)


def wide(rank):
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    return {"a": shape(1024, rank), "b": shape(rank, 768)}


@pytest.mark.parametrize(
    "fn",
    [
        lambda first, second: algebra.truncate(first, rank=2),
        lambda first, second: algebra.joint_basis(first, second),
        lambda first, second: algebra.coordinates(
            algebra.joint_basis(first, second), first
        ),
    ],
    ids=["truncate", "joint_basis", "coordinates"],
)
def test_no_temporary_is_as_large_as_the_delta(fn):
    compiled = jax.jit(fn).lower(wide(4), wide(4)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1024 * 768 * 4 / 8


# --- The joint basis and its coordinates ---------------------------------------------


@few
@given(seeds, seeds)
def test_coordinates_lose_nothing(seed_1, seed_2):
    first, second = factors(seed_1), factors(seed_2)
    basis = joint_basis(first, second)
    for entry in (first, second):
        core = algebra.coordinates(basis, entry)
        rebuilt = {"a": basis.left, "m": core, "b": basis.right}
        assert_close(dense(rebuilt), dense(entry), atol=2e-5)


@pytest.mark.parametrize("outputs", [2, 3])
def test_coordinates_lose_nothing_where_a_side_is_below_both_ranks(outputs):
    first, second = factors(0, outputs=outputs), factors(1, outputs=outputs)
    basis = joint_basis(first, second)
    core = algebra.coordinates(basis, second)
    assert core.shape == (4, outputs)
    assert_close(basis.left @ core @ basis.right, dense(second))


def test_the_bases_are_orthonormal():
    basis = joint_basis(factors(0), factors(1))
    assert_close(basis.left.T @ basis.left, np.eye(4))
    assert_close(basis.right @ basis.right.T, np.eye(4))


def test_the_left_basis_is_the_singular_vectors_of_both_deltas():
    first, second = factors(0), factors(1)
    both = np.concatenate([dense(first), dense(second)], axis=-1)
    expected = np.linalg.svd(both)[0][:, :4]
    left = joint_basis(first, second).left
    assert_close(np.abs(left), np.abs(expected), atol=1e-4)


@few
@given(seeds, seeds)
def test_the_core_does_not_see_the_gauge(seed_1, seed_2):
    first, second = factors(0), factors(1)
    turned = regauged(first, gauge(seed_1)), regauged(second, gauge(seed_2))
    for core, other in zip(cores(first, second), cores(*turned), strict=True):
        assert_close(np.abs(other), np.abs(core), atol=1e-3)


@pytest.mark.parametrize(
    "matrix",
    [np.diag([5.0, 5.0]), np.diag([1e-2, 1e2]), np.array([[0.6, -0.8], [0.8, 0.6]])],
    ids=["rescaled", "rescaled one by one", "rotated"],
)
def test_the_core_does_not_see(matrix):
    first, second = factors(0), factors(1)
    _, core = cores(first, second)
    _, other = cores(first, regauged(second, matrix))
    assert_close(np.abs(other), np.abs(core), atol=1e-3)


def test_directions_that_neither_delta_uses_are_zero():
    entry = factors(0)
    basis = joint_basis(entry, regauged(entry, gauge(1)))
    used = np.linalg.norm(basis.left, axis=0), np.linalg.norm(basis.right, axis=1)
    np.testing.assert_allclose(used[0], [1, 1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(used[1], [1, 1, 0, 0], atol=1e-5)


def test_the_basis_of_two_zero_deltas_is_zero():
    zero = factors(0) | {"b": jnp.zeros((2, 5))}
    basis = joint_basis(zero, zero)
    assert not np.any(basis.left)
    assert not np.any(basis.right)


def test_leading_axes_are_decomposed_on_their_own():
    first, second = factors(0, lead=(2, 3)), factors(1, lead=(2, 3))
    core = cores(first, second)[0]
    one = cores(pick(first, (1, 2)), pick(second, (1, 2)))[0]
    assert core.shape == (2, 3, 4, 4)
    assert_close(np.abs(core[1, 2]), np.abs(one), atol=1e-4)


# --- All modules at once -------------------------------------------------------------


def network(seed):
    return {
        "first": factors(seed, inputs=6),
        "second": factors(seed + 1, inputs=6),
        "third": factors(seed + 2, inputs=4, rank=1),
        "head": {"kernel": jnp.ones((5, 3)), "bias": jnp.zeros(3)},
    }


def test_map_factors_is_a_loop_over_modules_of_any_shape():
    federated, local = network(0), network(10)
    mapped = algebra.map_factors(algebra.concatenate, federated, local)
    expected = {
        path: algebra.concatenate(federated[path], local[path])
        for path in ("first", "second", "third")
    }
    assert_close(mapped, expected)


def test_map_factors_calls_once_a_shape():
    seen = []
    algebra.map_factors(lambda e: seen.append(e["a"].shape) or e, network(0))
    assert sorted(seen) == [(1, 4, 1), (2, 6, 2)]


def test_map_factors_leaves_out_whole_modules():
    assert "head" not in algebra.map_factors(lambda entry: entry, network(0))


# --- The norm of a delta -------------------------------------------------------------


def test_norms_are_the_dense_ones():
    entry = factors(0, lead=(3,))
    assert_close(algebra.norm(entry), np.sqrt((dense(entry) ** 2).sum((1, 2))))


def test_a_core_counts_in_the_norm():
    cored = factors(0) | {"m": normal(np.random.default_rng(2), (2, 2))}
    assert_close(algebra.norm(cored), np.linalg.norm(dense(cored)))


# --- Gauges --------------------------------------------------------------------------


def test_balanced_factors_are_the_same_delta_with_equal_singular_values():
    entry = regauged(factors(0), gauge(1))
    actual = algebra.balance(entry)
    assert_close(dense(actual), dense(entry))
    a, b = (np.asarray(actual[name], np.float64) for name in "ab")
    assert_close(a.T @ a, b @ b.T, atol=1e-4)


def test_aligned_factors_are_the_nearest_of_all_rotations():
    reference, entry = factors(0), factors(5)
    actual = algebra.align(reference, entry)
    assert_close(dense(actual), dense(entry))
    apart = lambda e: sum(
        np.sum(np.square(np.asarray(e[n]) - np.asarray(reference[n]))) for n in "ab"
    )
    for seed in range(30):
        turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(2, 2)))
        assert apart(actual) <= apart(regauged(entry, turn)) + 1e-4


def test_aligning_undoes_a_rotation():
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert_close(algebra.align(factors(0), regauged(factors(0), turn)), factors(0))


# --- Solving -------------------------------------------------------------------------


def test_least_squares_are_numpys_of_least_norm():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 4))
    target = rng.normal(size=(6, 3))
    actual = algebra.least_squares(jnp.float32(matrix), jnp.float32(target))
    assert_close(actual, np.linalg.pinv(matrix) @ target, atol=1e-4)


def test_solutions_of_stacks_are_numpys():
    rng = np.random.default_rng(0)
    matrix, target = rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 3, 2))
    actual = algebra.solve(jnp.float32(matrix), jnp.float32(target))
    assert_close(actual, np.linalg.solve(matrix, target), atol=1e-3)


def test_the_polar_factor_is_orthogonal_where_it_is_not_zero():
    matrix = dense(factors(0))
    u, _, v = np.linalg.svd(matrix)
    assert_close(algebra.polar(jnp.float32(matrix)), u[:, :2] @ v[:2], atol=1e-4)


def test_three_deltas_have_one_joint_basis():
    entries = [factors(seed, rank=rank) for seed, rank in ((0, 1), (1, 2), (2, 1))]
    basis = algebra.joint_basis(*entries)
    for entry in entries:
        core = algebra.coordinates(basis, entry)
        back = {"a": basis.left, "m": core, "b": basis.right}
        assert_close(dense(back), dense(entry))
        beside = {"a": algebra.rows(basis.right, entry), "b": basis.right}
        assert_close(dense(beside), dense(entry))


def test_a_core_counts_in_truncation_and_alignment():
    entry = factors(0) | {"m": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    assert_close(dense(algebra.truncate(entry, rank=2)), dense(entry), atol=1e-4)
    assert_close(dense(algebra.align(factors(1), entry)), dense(entry), atol=1e-4)
