from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend.core import jaxprs_in_params

from potara_jax.adapters import lora
from potara_jax.models.vit import ViT, ViTConfig
from tests.helpers import assert_close, normal

SCALE = 0.7
KEY = jax.random.key(0)


class Alone(nn.Module):
    """One layer under the name `layer`."""

    make: Any

    @nn.compact
    def __call__(self, x):
        return self.make(name="layer")(x)


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.tanh(nn.Dense(11, name="body")(x)))


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        hidden = nn.tanh(nn.DenseGeneral((2, 3), name="up")(x))
        return x + nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name="down")(hidden), _


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Residual),
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            length=3,
        )
        return layers(name="layers")(x, None)[0]


class Normalised(nn.Module):
    """A model with running statistics, which takes a flag as well as an array."""

    @nn.compact
    def __call__(self, x, train):
        hidden = nn.Dense(11, name="body")(x)
        hidden = nn.BatchNorm(use_running_average=not train, name="norm")(hidden)
        return nn.Dense(3, name="head")(nn.tanh(hidden))


def random_params(model, x, seed=0):
    """Parameters without a zero in them, biases included."""
    shapes = jax.eval_shape(model.init, KEY, x)["params"]
    return random_like(shapes, seed)


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: 0.5 * normal(rng, x.shape), tree)


def random_adapter(sites, rank=2, seed=1):
    shapes = jax.eval_shape(lambda key: lora.init(key, sites, rank=rank), KEY)
    return random_like(shapes, seed)


def inputs(*shape):
    return normal(np.random.default_rng(9), shape)


def adapted(model, base, adapter, x):
    return jax.jit(lora.bind(model, scale=SCALE))(base, adapter, x)


def unadapted(model, base, x):
    return jax.jit(model.apply)({"params": base}, x)


def setup(model, x, *targets, rank=2):
    sites = lora.find_sites(model, x, targets=targets)
    return random_params(model, x), sites, random_adapter(sites, rank)


LAYERS = {
    "dense": (partial(nn.Dense, 5), (3, 4)),
    "heads out": (partial(nn.DenseGeneral, (2, 3)), (3, 4)),
    "heads in": (partial(nn.DenseGeneral, 5, axis=(-2, -1)), (3, 2, 4)),
    "heads in, turned": (partial(nn.DenseGeneral, 5, axis=(-1, -2)), (3, 2, 4)),
    "heads in and out": (partial(nn.DenseGeneral, (2, 3), axis=(-2, -1)), (3, 2, 4)),
    "middle axis": (partial(nn.DenseGeneral, 5, axis=1), (3, 4, 2)),
    "axes apart": (partial(nn.DenseGeneral, 5, axis=(1, 3)), (3, 4, 2, 3)),
    "einsum": (partial(nn.Einsum, (4, 2, 3), "...D,DNH->...NH"), (2, 3, 4)),
    "einsum backwards": (
        partial(nn.Einsum, (5, 2, 3), "BTNH,DNH->BTD"),
        (2, 4, 2, 3),
    ),
    "einsum mixed": (
        partial(nn.Einsum, (2, 4, 3), "...D,NDH->...NH", use_bias=False),
        (2, 3, 4),
    ),
    "convolution": (
        partial(nn.Conv, 5, (3, 3), strides=2),
        (2, 6, 5, 3),
    ),
    "convolution in time": (
        partial(nn.Conv, 5, 3, padding="VALID", kernel_dilation=2, use_bias=False),
        (2, 9, 3),
    ),
}
each_layer = pytest.mark.parametrize(
    ("make", "shape"), LAYERS.values(), ids=LAYERS.keys()
)


# --- Sites ---------------------------------------------------------------------------


def test_a_target_matches_the_end_of_a_path_at_a_boundary():
    vit, image = tiny_vit()
    find = partial(lora.find_sites, vit, image)
    query = {f"block_{i}/attention/query" for i in range(2)}
    value = {f"block_{i}/attention/value" for i in range(2)}
    assert set(find(targets=["query"])) == set(find(targets="query")) == query
    assert set(find(targets=["attention/(query|value)"])) == query | value
    assert set(find(targets=["query", "value"])) == query | value
    assert set(find(targets=["block_1/.*/(query|value)"])) == {
        path for path in query | value if "block_1" in path
    }


@pytest.mark.parametrize("target", ["uery", "attention", "norm"])
def test_a_target_without_a_match_is_named_with_the_adaptable_modules(target):
    vit, image = tiny_vit()
    with pytest.raises(ValueError, match=f"target '{target}' matches no") as error:
        lora.find_sites(vit, image, targets=["query", target])
    assert "'query'" not in str(error.value)
    assert str(error.value).endswith(
        "embed, block_*/attention/query, block_*/attention/key, "
        "block_*/attention/value, block_*/attention/out, block_*/mlp/up, "
        "block_*/mlp/down, head"
    )


def test_no_target_is_refused():
    with pytest.raises(ValueError, match="none given"):
        lora.find_sites(TwoLayers(), inputs(2, 7), targets=[])


def test_sites_need_shapes_alone():
    shape = jax.ShapeDtypeStruct((2, 7), jnp.float32)
    site = lora.find_sites(TwoLayers(), shape, targets=["body"])["body"]
    assert site == lora.Site("body", (7, 11), (0,), (1,), 0)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("heads in and out", ((), 8, 6)),
        ("einsum backwards", ((), 6, 5)),
        ("einsum mixed", ((), 4, 6)),
        ("convolution", ((), 27, 5)),
    ],
)
def test_factor_shapes(layer, expected):
    make, shape = LAYERS[layer]
    site = lora.find_sites(Alone(make), inputs(*shape), targets=["layer"])["layer"]
    assert site.factor_shape == expected


def test_scanned_layers_are_one_site_with_a_leading_axis():
    sites = lora.find_sites(Scanned(), inputs(2, 4), targets=["up", "down"])
    assert {path: site.factor_shape for path, site in sites.items()} == {
        "layers/up": ((3,), 4, 6),
        "layers/down": ((3,), 6, 4),
    }


@pytest.mark.parametrize(
    ("make", "shape", "reason"),
    [
        (partial(nn.Einsum, (2, 4, 5), "BND,NDK->BNK"), (3, 2, 4), "batch axes"),
        (partial(nn.Conv, 6, (3,), feature_group_count=2), (2, 5, 4), "grouped"),
        (partial(nn.DenseGeneral, 5, batch_dims=(0,)), (3, 4), "batch_dims"),
    ],
    ids=["einsum", "grouped convolution", "batch_dims"],
)
def test_kernels_with_batch_axes_or_groups_are_refused(make, shape, reason):
    with pytest.raises(ValueError, match=f"'layer' is a.*{reason}"):
        lora.find_sites(Alone(make), inputs(*shape), targets=["layer"])


# --- Initial factors -----------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, -1, 4])
def test_a_rank_that_does_not_fit_is_refused(rank):
    sites = lora.find_sites(TwoLayers(), inputs(2, 7), targets=["body", "head"])
    message = rf"rank {rank} does not fit.*between 1 and 3 .*'head'"
    with pytest.raises(ValueError, match=message):
        lora.init(KEY, sites, rank=rank)


def test_initial_factors_are_uniform_and_zero():
    model, x = Alone(partial(nn.Dense, 300)), inputs(1, 400)
    sites = lora.find_sites(model, x, targets=["layer"])
    entry = lora.init(KEY, sites, rank=4)["layer"]
    assert entry["a"].shape == (400, 4)
    assert entry["b"].shape == (4, 300)
    assert 0.049 < float(jnp.abs(entry["a"]).max()) <= 0.05
    assert abs(float(entry["a"].std()) - 0.05 / 3**0.5) < 1e-3
    assert not np.any(entry["b"])


def test_initial_factors_do_not_depend_on_the_order_of_sites():
    sites = lora.find_sites(TwoLayers(), inputs(2, 7), targets=["body", "head"])
    turned = dict(reversed(sites.items()))
    first, second = (lora.init(KEY, s, rank=2) for s in (sites, turned))
    assert_close(first, second, atol=0)


@pytest.mark.parametrize(
    ("model", "x", "targets"),
    [
        (TwoLayers(), inputs(2, 7), ["body", "head"]),
        (Scanned(), inputs(2, 4), ["up", "down"]),
    ],
    ids=["two layers", "scanned"],
)
def test_initial_factors_leave_the_model_as_it_is(model, x, targets):
    base, sites, _ = setup(model, x, *targets)
    adapter = lora.init(KEY, sites, rank=2)
    initial = adapted(model, base, adapter, x)
    assert_close(initial, unadapted(model, base, x), atol=1e-6)


# --- Applying and folding ------------------------------------------------------------


def test_a_dense_layer_adds_the_scaled_product():
    x = inputs(3, 4)
    model = Alone(partial(nn.Dense, 5))
    base, _, adapter = setup(model, x, "layer")
    layer, entry = base["layer"], adapter["layer"]
    expected = x @ layer["kernel"] + layer["bias"]
    expected += SCALE * (x @ entry["a"]) @ entry["b"]
    assert_close(adapted(model, base, adapter, x), expected)


@each_layer
def test_folded_equals_applied(make, shape):
    model, x = Alone(make), inputs(*shape)
    base, sites, adapter = setup(model, x, "layer")
    applied = adapted(model, base, adapter, x)
    folded = lora.fold(base, adapter, sites, scale=SCALE)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, base)
    plain = unadapted(model, base, x)
    assert float(jnp.abs(applied - plain).max()) > 0.1
    assert_close(applied, unadapted(model, folded, x))


@pytest.mark.parametrize(
    "layer", ["dense", "heads in and out", "einsum mixed", "convolution"]
)
def test_folded_equals_applied_with_a_core(layer):
    make, shape = LAYERS[layer]
    model, x = Alone(make), inputs(*shape)
    base, sites, adapter = setup(model, x, "layer")
    core = jnp.array([[0.5, -1.0], [2.0, 0.3]])
    with_core = {"layer": adapter["layer"] | {"m": core}}
    applied = adapted(model, base, with_core, x)
    folded = lora.fold(base, with_core, sites, scale=SCALE)
    assert_close(applied, unadapted(model, folded, x))
    without = adapted(model, base, adapter, x)
    assert float(jnp.abs(applied - without).max()) > 0.1


def test_scanned_and_rematerialised_layers_fold_and_differentiate():
    model, x = Scanned(), inputs(2, 4)
    base, sites, adapter = setup(model, x, "up", "down")

    def folded(adapter):
        return unadapted(model, lora.fold(base, adapter, sites, scale=SCALE), x)

    square = lambda fn: jax.value_and_grad(lambda adapter: (fn(adapter) ** 2).sum())
    applied = lambda adapter: adapted(model, base, adapter, x)
    assert_close(square(applied)(adapter), square(folded)(adapter), atol=2e-5)


def test_folding_can_be_compiled():
    model, x = TwoLayers(), inputs(2, 7)
    base, sites, adapter = setup(model, x, "body")
    fold = lambda base, adapter: lora.fold(base, adapter, sites, scale=SCALE)
    assert_close(jax.jit(fold)(base, adapter), fold(base, adapter))


def tiny_vit():
    config = ViTConfig(patch=2, width=8, depth=2, heads=2, mlp_ratio=2, classes=3)
    return ViT(config), inputs(2, 4, 4, 1)


def test_a_vision_transformer_folds_and_computes_the_same_under_jit():
    model, x = tiny_vit()
    base, sites, adapter = setup(model, x, "embed", "query", "out", "down", "head")
    assert len(sites) == 8
    applied = adapted(model, base, adapter, x)
    folded = lora.fold(base, adapter, sites, scale=SCALE)
    assert_close(applied, unadapted(model, folded, x), atol=2e-5)


def test_an_empty_adapter_is_the_base():
    model, x = TwoLayers(), inputs(2, 7)
    base = random_params(model, x)
    assert_close(adapted(model, base, {}, x), unadapted(model, base, x), atol=0)


def test_the_delta_is_computed_in_the_dtype_of_the_output():
    model, x = Alone(partial(nn.Dense, 5, dtype=jnp.bfloat16)), inputs(3, 4)
    base, _, adapter = setup(model, x, "layer")
    assert adapted(model, base, adapter, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", [jnp.asarray, np.array], ids=["jax", "numpy"])
def test_folding_does_not_change_the_base(kind):
    model, x = TwoLayers(), inputs(2, 7)
    base, sites, adapter = setup(model, x, "body")
    before, base = base, jax.tree.map(kind, base)
    lora.fold(base, adapter, sites, scale=SCALE)
    assert_close(base, before, atol=0)


# --- Modules that are trained whole --------------------------------------------------


def test_trained_modules_start_at_the_base_in_float32():
    base = random_params(TwoLayers(), inputs(2, 7))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    head = lora.trained_modules(half, ["head"])["head"]
    assert {x.dtype for x in head.values()} == {jnp.dtype(jnp.float32)}
    assert_close(head, dict(half["head"]), atol=0)
    assert not lora.is_factors(head)


def test_a_module_below_another_is_trained_by_its_path():
    base = {"block": {"norm": {"scale": jnp.ones(2)}, "out": {"bias": jnp.ones(3)}}}
    assert_close(
        lora.trained_modules(base, ["block"])["block"],
        {"norm/scale": jnp.ones(2), "out/bias": jnp.ones(3)},
    )
    assert set(lora.trained_modules(base, ["block/norm"])["block/norm"]) == {"scale"}


@pytest.mark.parametrize("path", ["hea", "missing"])
def test_a_trained_module_that_is_not_there_is_named(path):
    base = random_params(TwoLayers(), inputs(2, 7))
    with pytest.raises(ValueError, match=f"no module '{path}'.*body, head"):
        lora.trained_modules(base, [path])


def test_trained_modules_replace_the_bases():
    model, x = TwoLayers(), inputs(2, 7)
    base, sites, adapter = setup(model, x, "body")
    head = random_like(lora.trained_modules(base, ["head"]), seed=5)
    replaced = base | {"head": head["head"]}
    applied = adapted(model, base, adapter | head, x)
    assert_close(applied, adapted(model, replaced, adapter, x), atol=1e-6)
    folded = lora.fold(base, adapter | head, sites, scale=SCALE)
    assert_close(applied, unadapted(model, folded, x))


# --- Many clients, one base ----------------------------------------------------------


def matrix_products(jaxpr):
    """Every `dot_general`: the operands' shapes, its batch axes, the result's shape."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            _, batch = equation.params["dimension_numbers"]
            shapes = [v.aval.shape for v in equation.invars]
            yield shapes, batch, equation.outvars[0].aval.shape
        for inner in jaxprs_in_params(equation.params):
            yield from matrix_products(inner)


def client_gradient_products(*, argument=1, base_axis=None):
    model, x = TwoLayers(), inputs(4, 5, 7)
    base, _, adapter = setup(model, x[0], "body", "head")
    clients = lambda tree: jax.tree.map(lambda v: jnp.stack([v] * 4), tree)
    base = base if base_axis is None else clients(base)
    bound = lora.bind(model, scale=SCALE)
    loss = lambda base, adapter, x: (bound(base, adapter, x) ** 2).sum()
    gradient = jax.vmap(jax.grad(loss, argument), in_axes=(base_axis, 0, 0))
    return list(matrix_products(jax.make_jaxpr(gradient)(base, clients(adapter), x)))


KERNELS = {(7, 11), (11, 3)}


def uses_of(products, kernel):
    return [batch for shapes, batch, _ in products if kernel in shapes]


def kernel_gradients(products):
    turned = {shape[::-1] for shape in KERNELS}
    return [out for *_, out in products if out[-2:] in KERNELS | turned]


def test_the_base_product_has_no_client_axis():
    products = client_gradient_products()
    for kernel in KERNELS:
        batches = uses_of(products, kernel)
        assert batches
        assert set(batches) == {((), ())}


def test_products_with_the_factors_have_the_client_axis():
    batches = uses_of(client_gradient_products(), (4, 7, 2))
    assert batches
    assert ((), ()) not in batches


def test_no_gradient_of_the_base_is_computed():
    assert not kernel_gradients(client_gradient_products())
    assert kernel_gradients(client_gradient_products(argument=0, base_axis=0))


# --- Inputs of the adapted layers ----------------------------------------------------


def test_inputs_are_what_the_adapted_layers_read():
    x = normal(np.random.default_rng(0), (4, 5, 7))
    model = TwoLayers()
    base = random_params(model, x)
    sites = lora.find_sites(model, x, targets=("body", "head"))
    adapter = random_like(lora.init(KEY, sites, rank=2), 3)
    actual = lora.bind_inputs(model, scale=SCALE)(base, adapter, x)
    affine = lambda e, y: y @ e["kernel"] + e["bias"]
    delta = SCALE * x @ adapter["body"]["a"] @ adapter["body"]["b"]
    hidden = nn.tanh(affine(base["body"], x) + delta)
    assert_close(actual["body"], x.reshape(20, 7))
    assert_close(actual["head"], hidden.reshape(20, 11))


def test_inputs_of_several_axes_are_flattened_as_the_factors_are():
    x = normal(np.random.default_rng(0), (2, 3, 2, 4))
    model = Alone(partial(nn.DenseGeneral, 5, axis=(-2, -1)))
    sites = lora.find_sites(model, x, targets=("layer",))
    adapter, base = lora.init(KEY, sites, rank=2), random_params(model, x)
    actual = lora.bind_inputs(model, scale=SCALE)(base, adapter, x)
    assert_close(actual["layer"], x.reshape(6, 8))


def test_inputs_of_scanned_layers_are_refused():
    x = normal(np.random.default_rng(0), (2, 4))
    sites = lora.find_sites(Scanned(), x, targets=("up",))
    adapter, base = lora.init(KEY, sites, rank=2), random_params(Scanned(), x)
    with pytest.raises(ValueError, match="scans over 'layers/up'"):
        lora.bind_inputs(Scanned(), scale=SCALE)(base, adapter, x)


# --- Bases with collections beside the parameters ------------------------------------


def normalised():
    """A model with batch statistics, all its variables, sites, an adapter, inputs."""
    model, x = Normalised(), inputs(4, 7)
    shapes = jax.eval_shape(lambda: model.init(KEY, x, False))
    variables = random_like(shapes, seed=0)
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    sites = lora.find_sites(model, x, False, targets=["body", "head"])
    return model, variables, sites, random_adapter(sites), x


def test_flags_are_passed_on_when_sites_are_traced():
    _, _, sites, _, _ = normalised()
    assert {path: site.factor_shape for path, site in sites.items()} == {
        "body": ((), 7, 11),
        "head": ((), 11, 3),
    }


def test_batch_statistics_are_read_and_kept_when_folding():
    model, variables, sites, adapter, x = normalised()
    before = jax.tree.map(np.array, variables)
    adapter |= random_like(lora.trained_modules(variables, ["norm"]), seed=4)
    applied = lora.bind(model, scale=SCALE)(variables, adapter, x, False)
    folded = lora.fold(variables, adapter, sites, scale=SCALE)
    assert_close(applied, model.apply(folded, x, False))
    assert_close(folded["batch_stats"], before["batch_stats"], atol=0)
    assert_close(variables, before, atol=0)
    shifted = variables | {"batch_stats": jax.tree.map(jnp.exp, before["batch_stats"])}
    other = lora.bind(model, scale=SCALE)(shifted, adapter, x, False)
    assert float(jnp.abs(applied - other).max()) > 0.01


def test_what_layers_read_comes_after_the_statistics():
    model, variables, _, adapter, x = normalised()
    rows = lora.bind_inputs(model, scale=SCALE)(variables, adapter, x, False)
    read = lora.bind_input_of(model, "head", scale=SCALE)
    assert_close(rows["body"], x)
    assert_close(read(variables, adapter, x, False), rows["head"])
    _, intermediates = model.apply(
        variables, x, False, capture_intermediates=True, mutable=["intermediates"]
    )
    (hidden,) = intermediates["intermediates"]["norm"]["__call__"]
    assert_close(read(variables, {}, x, False), nn.tanh(hidden))


def test_clients_share_the_statistics():
    model, variables, _, adapter, x = normalised()
    apply = lora.bind(model, scale=SCALE)
    opposite = jax.tree.map(jnp.negative, adapter)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), adapter, opposite)
    mapped = jax.vmap(lambda base, a: apply(base, a, x, False), in_axes=(None, 0))
    expected = [apply(variables, each, x, False) for each in (adapter, opposite)]
    assert_close(mapped(variables, stacked), jnp.stack(expected))


def test_the_entries_of_a_whole_module_are_parameters_alone():
    _, variables, _, _, _ = normalised()
    assert set(lora.trained_modules(variables, ["norm"])["norm"]) == {"scale", "bias"}
    with pytest.raises(ValueError, match=r"no module 'mean'.*body, head, norm"):
        lora.trained_modules(variables, ["mean"])


def test_kernels_of_all_variables_take_dense_deltas():
    _, variables, sites, _, _ = normalised()
    deltas = {"body": jnp.ones((7, 11))}
    added = lora.bind_add(sites, scale=SCALE)(variables, deltas)
    kernel = variables["params"]["body"]["kernel"]
    assert_close(added["params"]["body"]["kernel"], kernel + SCALE)
    assert added["batch_stats"] is variables["batch_stats"]


def test_a_module_is_adapted_or_trained_whole_and_not_both():
    sites = dict.fromkeys(["block_0/query", "block_0/value", "head"])
    lora.check_apart(sites, ["norm", "block", "block_0/q"])
    for whole, site in (("head", "head"), ("block_0", "block_0/query")):
        said = f"'{whole}' is trained whole, but '{site}' in it is a target too"
        with pytest.raises(ValueError, match=said):
            lora.check_apart(sites, [whole])
    for names in (["norm", "norm"], ["body/norm", "body"], ["body", "body/norm"]):
        with pytest.raises(ValueError, match="in it is trained whole too"):
            lora.check_apart(sites, names)


def test_an_entry_that_is_no_module_of_the_base_is_refused():
    """It would be without effect, such as that of a module with another name."""
    model, x = TwoLayers(), jnp.ones((2, 5))
    base, apply = random_params(model, x), lora.bind(model, scale=1.0)
    factors = {"a": jnp.ones((5, 2)), "b": jnp.ones((2, 11))}
    for entry in (factors, {"bias": jnp.zeros(3)}):
        with pytest.raises(ValueError, match="'trunk' is no module of the base, whose"):
            apply(base, {"trunk": entry}, x)
