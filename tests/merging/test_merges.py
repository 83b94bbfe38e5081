"""Every merge against its mathematics on dense deltas, in float64 NumPy."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax import merging
from potara_jax.adapters.lora import is_factors
from potara_jax.merging import registry, spaces
from tests.helpers import assert_close, dense, factors, gauge, normal, regauged, stack

INPUTS, OUTPUTS, RANK = 9, 7, 2
KEY = jax.random.key(5)
MERGES = registry.merges()
DATA_FREE = {name: e for name, e in MERGES.items() if e.needs == "nothing"}
EVERYWHERE = [(name, space) for name, e in DATA_FREE.items() for space in e.spaces]
everywhere = pytest.mark.parametrize(("name", "space"), EVERYWHERE)


def adapter(seed, rank=RANK):
    rng = np.random.default_rng(seed)
    return {
        "first": factors(seed, INPUTS, OUTPUTS, rank),
        "second": factors(seed + 1, INPUTS, OUTPUTS, rank),
        "head": {"bias": normal(rng, (4,))},
    }


ONE, TWO, THREE = adapter(0), adapter(10), adapter(20)
FIRST, SECOND = dense(ONE["first"]), dense(TWO["first"])


@cache
def compiled(method, space, rank):
    def run(adapters, weights, key):
        return merging.merge(
            adapters, weights, method=method, space=space, rank=rank, key=key
        )

    return jax.jit(run)


@cache
def plain_method(name):
    """The method at its defaults: one object, so that it is compiled once."""
    return MERGES[name].make()


def merged(method, adapters=(ONE, TWO), weights=None, space=None, rank=None):
    """The dense deltas of a merge, and whole modules as they are."""
    method = plain_method(method) if isinstance(method, str) else method
    weights = weights or [1 / len(adapters)] * len(adapters)
    out = compiled(method, space, rank)(tuple(adapters), list(weights), KEY)
    return {p: dense(e) if is_factors(e) else e for p, e in out.items()}


def first(method, weights=(0.5, 0.5), **options):
    return merged(method, weights=list(weights), **options)["first"]


def close(actual, expected, atol=1e-4):
    assert_close(actual, expected, atol=atol)


# --- Against dense NumPy -------------------------------------------------------------


def thin(matrix, rank):
    u, sigma, v = np.linalg.svd(matrix)
    return u[:, :rank], sigma[:rank], v[:rank]


def polar(matrix):
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    return u @ v


def test_task_arithmetic_is_the_scaled_sum():
    expected = 0.4 * (FIRST + SECOND)
    close(first(merging.task_arithmetic(scale=0.4), space="delta"), expected)
    expected = 0.4 * 2 * (0.3 * FIRST + 0.7 * SECOND)
    close(first(merging.task_arithmetic(scale=0.4), (0.3, 0.7), space="core"), expected)


def test_tsv_makes_the_singular_vectors_orthogonal():
    u, sigma, v = zip(thin(FIRST, RANK), thin(SECOND, RANK), strict=True)
    diagonal = np.diag(np.concatenate([0.6 * sigma[0], 1.4 * sigma[1]]))
    expected = polar(np.hstack(u)) @ diagonal @ polar(np.vstack(v))
    close(first(merging.tsv(), (0.3, 0.7)), expected)


@pytest.mark.parametrize("shared", ["a", "b"])
def test_tsv_of_adapters_that_share_a_factor_has_the_norm_of_all_others(shared):
    other = {"first": TWO["first"] | {shared: ONE["first"][shared]}}
    sigma = [thin(dense(x["first"]), RANK)[1] for x in (ONE, other)]
    nearly = {"first": other["first"] | {shared: other["first"][shared] + 1e-3}}
    expected = np.sqrt(np.sum(np.square(sigma)))
    for second in (other, nearly):
        actual = merged(merging.tsv(), [{"first": ONE["first"]}, second])["first"]
        assert np.linalg.norm(actual) == pytest.approx(expected, rel=1e-2)


def test_iso_makes_the_used_singular_values_equal():
    total = FIRST + SECOND
    u, sigma, v = thin(total, 2 * RANK)
    close(first(merging.iso()), u @ v * sigma.mean())
    close(first(merging.iso(scale=0.5)), u @ v * sigma.mean() / 2)


def test_wudi_solves_its_normal_equations():
    weights = (0.3, 0.7)
    grams = [x @ x.T / np.sum(x**2) for x in (FIRST, SECOND)]
    total = sum(w * g for w, g in zip(weights, grams, strict=True))
    towards = sum(
        w * g @ x for w, g, x in zip(weights, grams, (FIRST, SECOND), strict=True)
    )
    expected = np.linalg.pinv(total, rcond=1e-9) @ towards
    close(first(merging.wudi(ridge=0), weights), expected, atol=1e-3)
    for x in (FIRST, SECOND):  # inputs of different subspaces: no interference is left
        close(x.T @ expected, x.T @ x, atol=1e-6)


def test_a_strong_ridge_draws_wudi_to_the_sum():
    close(first(merging.wudi(ridge=1e6)), FIRST + SECOND, atol=1e-3)
    near = first(merging.wudi(ridge=1e-6))
    close(near, first(merging.wudi(ridge=0)), atol=1e-2)


def naive_ties(values, weights, density):
    kept = [np.sort(np.abs(x).ravel())[::-1][int(density * x.size) - 1] for x in values]
    trimmed = [x * (np.abs(x) >= k) for x, k in zip(values, kept, strict=True)]
    sign = np.where(
        sum(w * x for w, x in zip(weights, trimmed, strict=True)) >= 0, 1, -1
    )
    agree = [w * (x * sign > 0) for w, x in zip(weights, trimmed, strict=True)]
    total = sum(w * x for w, x in zip(agree, trimmed, strict=True))
    return total / np.where(sum(agree) > 0, sum(agree), 1)


def test_ties_by_hand():
    values = [jnp.array([[4.0, -1.0, 3.0, 0.5]]), jnp.array([[2.0, 5.0, -6.0, 1.0]])]
    combine = merging.ties(density=0.5).combine
    actual = combine(values, [0.5, 0.5], merging.Place(""))  # 4 0 3 0 and 0 5 -6 0
    np.testing.assert_allclose(actual, [[4, 5, -6, 0]])
    actual = combine(values, [0.75, 0.25], merging.Place(""))
    np.testing.assert_allclose(actual, [[4, 5, 3, 0]])
    actual = merging.ties(density=1.0).combine(values, [0.75, 0.25], merging.Place(""))
    np.testing.assert_allclose(actual, [[3.5, 5, 3, 0.625]])


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_of_factors_is_the_loops(density):
    out = merging.merge(
        (ONE, TWO), [0.4, 0.6], method=merging.ties(density=density), space="factor"
    )
    for name in "ab":
        values = [np.asarray(x["first"][name], np.float64) for x in (ONE, TWO)]
        assert_close(out["first"][name], naive_ties(values, (0.4, 0.6), density))


@pytest.mark.parametrize(("size", "kept"), [((2, 5), 2), ((2, 3), 1), ((1, 3), 1)])
def test_ties_keeps_as_many_entries_as_peft_and_at_least_one(size, kept):
    """Of density .29: int(2.9), int(1.74), and int(.87) which is none."""
    x = 1.0 + jnp.arange(np.prod(size)).reshape(size)
    actual = merging.ties(density=0.29).combine([x], [1.0], merging.Place(""))
    assert np.count_nonzero(actual) == kept


@pytest.mark.parametrize("space", ["core", "knots"])
def test_ties_does_not_count_directions_that_no_adapter_uses(space):
    """Zeros after an adapter's rank, and an adapter merged with itself."""
    exact = {"first": ONE["first"]}
    padding = ((0, 0), (0, 3)), ((0, 3), (0, 0))
    padded = {
        "first": {
            name: jnp.pad(exact["first"][name], p)
            for name, p in zip("ab", padding, strict=True)
        }
    }
    method = merging.ties(density=0.3)
    expected = merged(method, [exact], [1.0], space=space)["first"]
    assert np.abs(expected - FIRST).max() > 0.1
    for pair in ([exact, exact], [padded, exact], [exact, padded]):
        close(merged(method, pair, space=space)["first"], expected, atol=1e-3)


def test_ties_in_knots_space_is_that_of_the_dense_svd():
    """Of `[t_1 t_2]`, deltas as `[outputs, inputs]`, side by side (Stoica et al.)."""
    u, sigma, v = thin(np.hstack([FIRST.T, SECOND.T]), 2 * RANK)
    rows = np.split(sigma[:, None] * v, 2, axis=1)
    expected = u @ naive_ties(rows, (0.5, 0.5), 0.4)
    close(first(merging.ties(density=0.4), space="knots"), expected.T)


def test_regmean_is_the_dense_least_squares():
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(40, INPUTS)) for _ in range(2)]
    grams = [x.T @ x for x in inputs]
    as_jax = [{"first": jnp.float32(g)} for g in grams]
    shrunk = [0.9 * g + 0.1 * np.diag(np.diag(g)) for g in grams]
    expected = np.linalg.solve(
        0.3 * shrunk[0] + 0.7 * shrunk[1],
        0.3 * shrunk[0] @ FIRST + 0.7 * shrunk[1] @ SECOND,
    )
    only = [{"first": x["first"]} for x in (ONE, TWO)]
    method = merging.regmean(as_jax, off_diagonal=0.9)
    close(merged(method, only, [0.3, 0.7])["first"], expected, atol=1e-3)


def test_regmean_is_the_mean_where_no_input_has_been():
    none = [{"first": jnp.zeros((INPUTS, INPUTS))}] * 2
    only = [{"first": x["first"]} for x in (ONE, TWO)]
    actual = merged(merging.regmean(none), only, [0.3, 0.7])["first"]
    close(actual, 0.3 * FIRST + 0.7 * SECOND)


def test_slerp_keeps_to_the_arc():
    x, y = (np.asarray(t["first"]["a"], np.float64) for t in (ONE, TWO))
    angle = np.arccos(np.sum(x * y) / np.sqrt(np.sum(x**2) * np.sum(y**2)))
    t = 0.7
    expected = (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)
    out = merging.merge((ONE, TWO), [0.3, t], method=merging.slerp(), space="factor")
    assert_close(out["first"]["a"], expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_slerp_of_parallel_adapters_is_linear(sign):
    x = jnp.array([[1.0, 2.0]])
    actual = merging.slerp().combine([x, sign * 2 * x], [0.25, 0.75], merging.Place(""))
    np.testing.assert_allclose(actual, 0.25 * x + 0.75 * sign * 2 * x, rtol=1e-6)


def test_slerp_refuses_three():
    with pytest.raises(ValueError, match="'slerp' merges two adapters, not 3"):
        merging.merge((ONE, TWO, THREE), method=merging.slerp())


@pytest.mark.parametrize("draws", [1, 4])
def test_dares_mean_and_variance(draws):
    density, x, y = 0.3, jnp.array([[2.0, -1.0]]), jnp.array([[0.5, 3.0]])
    combine = merging.dare(density=density, draws=draws).combine
    draw = lambda key: combine([x, y], [0.5, 0.5], merging.Place("", key))
    actual = np.asarray(jax.vmap(draw)(jax.random.split(KEY, 20000)), np.float64)
    np.testing.assert_allclose(actual.mean(0), (x + y) / 2, atol=0.05)
    variance = (np.square(x) + np.square(y)) / 4 * (1 - density) / density / draws
    np.testing.assert_allclose(actual.var(0), variance, rtol=0.06)


def test_dare_keeps_everything_at_density_one():
    close(first(merging.dare(density=1.0), space="core"), (FIRST + SECOND) / 2)


def test_dare_drops_entries_of_every_module_on_their_own():
    same = {"one": ONE["first"], "two": ONE["first"]}
    out = merged(merging.dare(), [same, same], space="factor")
    assert np.abs(out["one"] - out["two"]).max() > 0.1


def test_dare_without_a_key_is_refused():
    with pytest.raises(ValueError, match="'dare' draws at random: give it a key"):
        merging.merge((ONE, TWO), method=merging.dare())


@pytest.mark.parametrize("make", [merging.ties, merging.dare])
@pytest.mark.parametrize("density", [0.0, 1.5, -1.0])
def test_a_share_must_be_one(make, density):
    with pytest.raises(ValueError, match=f"density is {density}"):
        make(density=density)


# --- What holds for all of them ------------------------------------------------------


@everywhere
def test_whole_modules_are_averaged(name, space):
    out = merged(name, weights=[0.25, 0.75], space=space)
    expected = 0.25 * ONE["head"]["bias"] + 0.75 * TWO["head"]["bias"]
    assert_close(out["head"]["bias"], expected)


SCALED = [(n, s) for n, s in EVERYWHERE if "scale" in MERGES[n].options]


@pytest.mark.parametrize(("name", "space"), SCALED)
def test_a_scale_is_of_the_delta(name, space):
    make = MERGES[name].make
    whole = merged(make(scale=1.0), space=space)
    for scale in (0.5, 2.0, -1.0):
        part = merged(make(scale=scale), space=space)
        close(part["first"], scale * whole["first"])
        assert_close(part["head"], whole["head"])


@everywhere
def test_weights_scale_the_delta_or_only_their_ratios_matter(name, space):
    method, weights = plain_method(name), [0.25, 0.75]
    expected = merged(name, weights=weights, space=space)["first"]
    for factor in (0.5, 2.0, 3.0):
        scaled = merged(name, weights=[factor * w for w in weights], space=space)
        size = 1 if method.relative else factor
        close(scaled["first"], size * expected, atol=1e-3)


SUMS = {
    "linear": merging.linear(),
    "task_arithmetic": merging.task_arithmetic(scale=1.0),
    "dare": merging.dare(density=1.0),
    "tsv": merging.tsv(),
}


@pytest.mark.parametrize(("name", "space"), [x for x in EVERYWHERE if x[0] in SUMS])
def test_one_adapter_with_a_weight_is_that_multiple(name, space):
    for weight in (1.0, 2.0, 0.5):
        actual = merged(SUMS[name], [ONE], [weight], space=space)["first"]
        close(actual, weight * FIRST, atol=1e-3)
    alone = lambda: merging.merge(
        [ONE], [-1.0], method=SUMS[name], space=space, key=KEY
    )
    if spaces.SPACES[space].bilinear:
        with pytest.raises(
            ValueError, match=rf"weight of -1 cannot .* '{space}' space"
        ):
            alone()
    else:
        close(dense(alone()["first"]), -FIRST, atol=1e-3)


@pytest.mark.parametrize("space", ["delta", "core", "knots", "factor", "aligned"])
def test_task_arithmetic_of_an_adapter_with_itself_is_twice_it(space):
    actual = merged(merging.task_arithmetic(scale=1.0), (ONE, ONE), space=space)
    close(actual["first"], 2 * FIRST, atol=1e-3)


@pytest.mark.parametrize("space", ["factor", "aligned"])
def test_weights_of_zero_give_zero_and_traced_weights_are_scaled_alike(space):
    zero = merging.merge([ONE, TWO], [0.0, 0.0], space=space)
    assert not dense(zero["first"]).any()
    run = jax.jit(lambda w: merging.merge([ONE, TWO], w, space=space)["first"])
    expected = merging.merge([ONE, TWO], [0.4, 1.2], space=space)["first"]
    close(dense(run((jnp.float32(0.4), jnp.float32(1.2)))), dense(expected))
    assert not dense(run((jnp.float32(0), jnp.float32(0)))).any()


@pytest.mark.parametrize("name", DATA_FREE)
def test_clients_are_merged_each_on_its_own(name):
    run = compiled(plain_method(name), None, None)
    keys, half = jax.random.split(KEY, 2), [0.5, 0.5]
    each = jax.vmap(lambda x, y, key: run((x, y), half, key))
    together = each(stack([ONE, TWO]), stack([TWO, THREE]), keys)
    for client, pair in enumerate([(ONE, TWO), (TWO, THREE)]):
        alone = run(pair, half, keys[client])["first"]
        one = {k: v[client] for k, v in together["first"].items()}
        close(dense(one), dense(alone), atol=1e-3)


EXACT = [(n, s) for n, s in EVERYWHERE if s not in ("factor",) and n != "dare"]


@pytest.mark.parametrize(("name", "space"), EXACT)
def test_only_factor_space_sees_the_gauge(name, space):
    """Signs of joint basis vectors turn both adapters' coordinates alike."""
    turned = TWO | {p: regauged(TWO[p], gauge(3)) for p in ("first", "second")}
    actual = merged(name, (ONE, turned), space=space)
    expected = merged(name, (ONE, TWO), space=space)
    for path in ("first", "second"):
        close(actual[path], expected[path], atol=2e-3)


@pytest.mark.parametrize("name", ["linear", "ties", "slerp"])
def test_factor_space_sees_the_gauge(name):
    turned = TWO | {"first": regauged(TWO["first"], gauge(3))}
    actual = merged(name, (ONE, turned), space="factor")["first"]
    assert np.abs(actual - merged(name, space="factor")["first"]).max() > 0.05


def changed(fn):
    """An adapter like ONE, whose first module's factors are changed."""
    return ONE | {"first": fn(ONE["first"])}


ZERO = changed(lambda entry: jax.tree.map(jnp.zeros_like, entry))
UNTRAINED = changed(lambda entry: entry | {"b": jnp.zeros_like(entry["b"])})
OPPOSITE = changed(lambda entry: entry | {"b": -entry["b"]})
SCALES = [
    changed(lambda entry, s=s: {k: s * v for k, v in entry.items()})
    for s in (1e-10, 1e8)
]


@everywhere
def test_degenerate_adapters_give_finite_merges_of_their_size(name, space):
    assert not merged(name, (ZERO, ZERO), space=space)["first"].any()
    for other in (ZERO, UNTRAINED, OPPOSITE, ONE, *SCALES):
        for pair in ((ONE, other), (other, ONE)):
            result = merged(name, pair, [0.3, 0.7], space=space)["first"]
            largest = max(np.abs(dense(x["first"])).max() for x in pair)
            assert np.isfinite(result).all()
            assert np.abs(result).max() < 30 * largest


SYMMETRIC = [(n, s) for n, s in EVERYWHERE if n != "dare" and s != "aligned"]


@pytest.mark.parametrize(("name", "space"), SYMMETRIC)
def test_the_order_of_adapters_does_not_matter(name, space):
    actual = merged(name, (ONE, TWO), [0.3, 0.7], space=space)
    expected = merged(name, (TWO, ONE), [0.7, 0.3], space=space)
    close(actual["first"], expected["first"], atol=2e-3)


@pytest.mark.parametrize("name", [name for name in DATA_FREE if name != "slerp"])
def test_three_adapters_are_merged(name):
    out = merged(name, (ONE, TWO, THREE))
    assert np.isfinite(out["first"]).all() and np.abs(out["first"]).max() > 0
    swapped = merged(name, (THREE, TWO, ONE))
    if name != "dare":
        close(out["first"], swapped["first"], atol=2e-3)


IDENTITIES = {
    "linear": merging.linear(),
    "ties": merging.ties(density=1.0),
    "dare": merging.dare(density=1.0),
    "slerp": merging.slerp(),
    "wudi": merging.wudi(ridge=0),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_an_adapter_merged_with_itself_is_itself(name):
    out = merged(IDENTITIES[name], (ONE, ONE))
    close(out["first"], FIRST, atol=1e-3)


@pytest.mark.parametrize("space", ["delta", "core", "knots"])
def test_ranks_may_differ_where_deltas_are_merged(space):
    other = adapter(10, rank=1)
    expected = (FIRST + dense(other["first"])) / 2
    close(merged("linear", (ONE, other), space=space)["first"], expected)


@pytest.mark.parametrize("space", ["factor", "aligned"])
def test_ranks_must_agree_where_factors_are_merged(space):
    with pytest.raises(ValueError, match=rf"'first' has ranks 1, 2.*'{space}'.*delta"):
        merging.merge((ONE, adapter(10, rank=1)), space=space)


@pytest.mark.parametrize("name", ["linear", "ties", "tsv", "wudi"])
def test_truncation_is_the_dense_svds(name):
    u, sigma, v = thin(merged(name)["first"], 1)
    close(merged(name, rank=1)["first"], u * sigma @ v, atol=2e-3)


def test_other_modules_and_too_few_weights_are_refused():
    with pytest.raises(ValueError, match="only one of two adapters has 'second'"):
        merging.merge((ONE, {p: TWO[p] for p in TWO if p != "second"}))
    with pytest.raises(ValueError, match="2 adapters need as many weights"):
        merging.merge((ONE, TWO), [1.0])


@pytest.mark.parametrize("name", ["ties", "slerp", "tsv", "iso", "wudi", "dare"])
def test_a_space_in_which_a_method_makes_no_sense_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' does not merge in 'delta'"):
        merging.merge((ONE, TWO), method=MERGES[name].make(), space="delta", key=KEY)


# --- Spaces --------------------------------------------------------------------------


@pytest.mark.parametrize("space", spaces.SPACES)
def test_coordinates_stand_for_their_adapters(space):
    actual = spaces.SPACES[space].coordinates((ONE, TWO, THREE))
    for given, theta in zip((ONE, TWO, THREE), actual.thetas, strict=True):
        back = spaces.plain(actual.assemble(theta))
        for path in ("first", "second"):
            close(dense(back[path]), dense(given[path]))
        assert back["head"] is given["head"]


def test_aligned_factors_are_nearer_than_turned_ones():
    turned = {"first": regauged(ONE["first"], gauge(1))}
    one = {"first": ONE["first"]}
    first_theta, second_theta = spaces.aligned((one, turned)).thetas
    assert_close(second_theta["first"], first_theta["first"], atol=1e-3)
