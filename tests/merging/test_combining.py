from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax import merging
from potara_jax.adapters.lora import is_factors
from potara_jax.merging import spaces
from potara_jax.merging.combining import per_module
from tests.helpers import assert_close, dense, factors, pick, stack

PATHS = ("body", "neck")


def network(seed, rank=2):
    rng = np.random.default_rng(seed)
    return {
        "body": factors(seed, inputs=6, outputs=5, rank=rank),
        "neck": factors(seed + 1, inputs=5, outputs=4, rank=rank),
        "head": {
            "kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=3), jnp.float32),
        },
    }


FEDERATED, LOCAL = network(0), network(10)


@partial(jax.jit, static_argnames=("space", "rank"))
def merge(federated, local, weight, space="core", rank=None):
    both = federated, local
    return merging.merge(both, merging.pair(weight), space=space, rank=rank)


def deltas(adapter):
    """Dense deltas, and whole modules as they are."""
    return {p: dense(e) if is_factors(e) else e for p, e in adapter.items()}


def mix(weight, federated, local):
    return jax.tree.map(
        lambda f, other: weight * f + (1 - weight) * other, federated, local
    )


def truncated(matrix, rank):
    u, sigma, v = np.linalg.svd(matrix)
    return (u[:, :rank] * sigma[:rank]) @ v[:rank]


exact_spaces = pytest.mark.parametrize("space", ["delta", "core", "knots"])
all_spaces = pytest.mark.parametrize("space", ["delta", "core", "knots", "factor"])


# --- One weight ----------------------------------------------------------------------


@exact_spaces
def test_exact_merges_sum_the_deltas(space):
    merged = merge(FEDERATED, LOCAL, 0.3, space=space)
    assert_close(deltas(merged), mix(0.3, deltas(FEDERATED), deltas(LOCAL)))


def test_the_factor_merge_averages_the_factors():
    assert_close(
        merge(FEDERATED, LOCAL, 0.3, space="factor"), mix(0.3, FEDERATED, LOCAL)
    )


def test_the_factor_merge_misses_the_product_of_differences():
    w = 0.3
    exact = deltas(merge(FEDERATED, LOCAL, w, space="delta"))
    factor = deltas(merge(FEDERATED, LOCAL, w, space="factor"))
    for path in PATHS:
        apart = {n: FEDERATED[path][n] - LOCAL[path][n] for n in "ab"}
        missed = w * (1 - w) * dense(apart)
        assert np.abs(missed).max() > 0.1
        assert_close(exact[path] - factor[path], missed)


@all_spaces
@pytest.mark.parametrize(("weight", "parent"), [(1.0, FEDERATED), (0.0, LOCAL)])
def test_the_ends_are_the_parents(space, weight, parent):
    merged = merge(FEDERATED, LOCAL, weight, space=space)
    assert_close(deltas(merged), deltas(parent))


@pytest.mark.parametrize(("space", "rank"), [("factor", 2), ("delta", 4), ("core", 4)])
def test_a_merge_is_made_of_plain_factors_of_the_documented_rank(space, rank):
    merged = merge(FEDERATED, LOCAL, 0.3, space=space)
    for path in PATHS:
        assert set(merged[path]) == {"a", "b"}
        assert merged[path]["a"].shape[-1] == merged[path]["b"].shape[-2] == rank


@all_spaces
def test_whole_modules_are_merged_linearly(space):
    merged = merge(FEDERATED, LOCAL, 0.3, space=space)
    assert_close(merged["head"], mix(0.3, FEDERATED["head"], LOCAL["head"]))


# --- Truncation ----------------------------------------------------------------------


@all_spaces
def test_a_truncated_merge_is_the_dense_svds(space):
    full = merge(FEDERATED, LOCAL, 0.3, space=space)
    merged = merge(FEDERATED, LOCAL, 0.3, space=space, rank=1)
    for path in PATHS:
        assert merged[path]["a"].shape[-1] == 1
        expected = truncated(dense(full[path]), 1)
        assert_close(dense(merged[path]), expected, atol=2e-5)
    assert_close(merged["head"], full["head"])


def test_truncating_keeps_whole_modules_and_no_others():
    cut = merging.truncate(FEDERATED, rank=1)
    assert set(cut) == set(FEDERATED)
    assert cut["head"] is FEDERATED["head"]


# --- Many weights --------------------------------------------------------------------


@all_spaces
def test_every_module_has_its_own_weight(space):
    weight = {"body": 0.2, "neck": 0.9, "head": 0.6}
    merged = merge(FEDERATED, LOCAL, weight, space=space)
    for path, value in weight.items():
        alone = merge({path: FEDERATED[path]}, {path: LOCAL[path]}, value, space=space)
        assert_close(deltas(merged)[path], deltas(alone)[path])


@jax.jit
def core(federated, local):
    return spaces.core((federated, local)).thetas


@jax.jit
def assembled(theta):
    return spaces.core((FEDERATED, LOCAL)).assemble(theta)


def mix_each(weight, federated, local):
    return jax.tree.map(
        lambda w, f, other: w * f + (1 - w) * other, weight, federated, local
    )


def weights_like(tree, seed=3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.float32(rng.uniform(size=x.shape)), tree)


def test_core_weighs_every_parameter_of_the_core():
    cores, others = core(FEDERATED, LOCAL)
    weight = weights_like(cores)
    merged = merge(FEDERATED, LOCAL, weight, space="core")
    mixed = mix_each(weight, cores, others)
    assert_close(deltas(merged), deltas(assembled(mixed)))


def test_factor_weighs_every_parameter_of_the_factors():
    weight = weights_like(FEDERATED)
    merged = merge(FEDERATED, LOCAL, weight, space="factor")
    expected = mix_each(weight, FEDERATED, LOCAL)
    assert_close(merged, expected)


def test_equal_weights_for_all_parameters_are_one_weight():
    cores, _ = core(FEDERATED, LOCAL)
    weight = jax.tree.map(lambda x: jnp.full(x.shape, 0.3), cores)
    merged = merge(FEDERATED, LOCAL, weight, space="core")
    assert_close(deltas(merged), mix(0.3, deltas(FEDERATED), deltas(LOCAL)))


def test_per_module_repeats_one_weight_and_keeps_many():
    assert per_module(0.3, FEDERATED) == dict.fromkeys(FEDERATED, 0.3)
    many = {"body": 0.1}
    assert per_module(many, FEDERATED) is many


# --- Clients, scanned layers, errors -------------------------------------------------


@all_spaces
def test_clients_are_merged_each_with_its_weight(space):
    federated, local = stack([FEDERATED, LOCAL]), stack([LOCAL, network(20)])
    weight = jnp.array([0.2, 0.7])
    merged = jax.vmap(partial(merge, space=space))(federated, local, weight)
    for client in range(2):
        alone = merge(
            pick(federated, client), pick(local, client), weight[client], space=space
        )
        assert_close(deltas(pick(merged, client)), deltas(alone))


@exact_spaces
def test_scanned_layers_are_merged_layer_by_layer(space):
    federated, local = ({"layers": factors(seed, lead=(3,))} for seed in (0, 1))
    merged = merge(federated, local, 0.3, space=space, rank=2)["layers"]
    expected = mix(0.3, dense(federated["layers"]), dense(local["layers"]))
    for layer in range(3):
        cut = truncated(expected[layer], 2)
        assert_close(dense(merged)[layer], cut, atol=2e-5)


@exact_spaces
def test_parents_may_have_different_ranks(space):
    local = network(10, rank=1)
    merged = merge(FEDERATED, local, 0.3, space=space)
    assert_close(deltas(merged), mix(0.3, deltas(FEDERATED), deltas(local)))


def test_an_unknown_space_is_refused():
    with pytest.raises(ValueError, match=r"'linear'.*'dense'.*delta, core, knots"):
        merging.merge((FEDERATED, LOCAL), space="dense")


@pytest.mark.parametrize("space", ["factor", "delta"])
def test_a_rank_above_the_merged_one_is_refused(space):
    with pytest.raises(ValueError, match="to rank 5"):
        merging.merge((FEDERATED, LOCAL), space=space, rank=5)


# --- What does not fit ----------------------------------------------------------------


def test_weights_of_clients_are_refused_and_not_spread_over_columns():
    clients = stack([{"m": factors(seed, rank=4)} for seed in range(8)])
    weight = jnp.linspace(0, 1, 8)
    with pytest.raises(ValueError, match="one is a scalar; use jax"):
        merging.merge((clients, clients), (weight, 1 - weight))


@pytest.mark.parametrize(
    ("adapters", "weights", "message"),
    [
        ([], None, "no adapter"),
        ([{"m": {"w": jnp.ones(3)}}, {"m": {"w": jnp.ones(2)}}], None, "'m'"),
        ([{"m": {"w": 1.0}}, {"m": {"w": 1.0, "c": 1.0}}], None, "'m'"),
        ([{"m": factors(0)}, {"m": {"w": jnp.ones(2)}}], None, "'m'"),
        ([{"m": factors(0)}], [{"other": 1.0}], "none for 'm'"),
    ],
)
def test_adapters_and_weights_that_do_not_fit_are_named(adapters, weights, message):
    with pytest.raises(ValueError, match=message):
        merging.merge(adapters, weights)


def test_ties_with_a_negative_weight_takes_what_agrees_after_weighing():
    one, other = ({"m": {"a": jnp.eye(1) * x, "b": jnp.eye(1)}} for x in (2.0, -1.0))
    merge = partial(merging.merge, method=merging.ties(density=1.0), space="core")
    merged = dense(merge((one, other), (1.0, -0.5))["m"])
    np.testing.assert_allclose(merged, [[(2.0 + 0.5) / 1.5]], rtol=1e-6)


def test_slerp_and_wudi_refuse_weights_that_they_cannot_use():
    pair = [{"m": factors(seed)} for seed in range(2)]
    with pytest.raises(ValueError, match="'slerp' divides by the sum"):
        merging.merge(pair, (1.0, -1.0), method=merging.slerp())
    with pytest.raises(ValueError, match="'wudi' needs weights of 0 or more"):
        merging.merge(pair, (1.0, -1.0), method=merging.wudi())


@pytest.mark.parametrize("make", [merging.ties, merging.tsv, merging.iso, merging.dare])
def test_a_scale_that_is_no_number_is_refused(make):
    with pytest.raises(ValueError, match="scale is nan"):
        make(scale=float("nan"))


@pytest.mark.parametrize("scale", [1e-10, 1e10])
@pytest.mark.parametrize("method", [merging.slerp(), merging.ties(density=0.5)])
def test_merges_of_small_and_large_deltas_are_the_same_but_for_scale(method, scale):
    pair = [{"m": factors(seed)} for seed in range(2)]
    scaled = [{"m": x["m"] | {"a": scale * x["m"]["a"]}} for x in pair]
    merge = partial(merging.merge, weights=(0.3, 0.7), method=method, space="core")
    expected, actual = dense(merge(pair)["m"]), dense(merge(scaled)["m"])
    np.testing.assert_allclose(actual / scale, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_factors_are_merged_in_float32(dtype):
    pair = [{"m": jax.tree.map(lambda x: x.astype(dtype), factors(s))} for s in (0, 1)]
    single = jax.tree.map(lambda x: x.astype(jnp.float32), pair)
    for space in spaces.SPACES:
        merged = merging.merge(pair, (0.3, 0.7), space=space)["m"]
        expected = merging.merge(single, (0.3, 0.7), space=space)["m"]
        assert merged["a"].dtype == jnp.float32
        assert_close(dense(merged), dense(expected))


def test_weights_of_parameters_are_refused_in_another_space():
    adapters = [network(0), network(1)]
    core = spaces.SPACES["core"].coordinates(adapters).thetas[0]
    weight = jax.tree.map(lambda x: jnp.full(x.shape, 0.3), core)
    with pytest.raises(ValueError, match=r"a weight for each of \['m'\], where its"):
        merging.merge(adapters, [weight, weight], space="delta")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "ties"}, "method is 'ties'"),
        ({"weights": 0.3}, "a list with one an"),
    ],
)
def test_what_is_no_method_or_no_weights_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        merging.merge([network(0), network(1)], **options)
