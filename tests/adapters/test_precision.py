import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.extend.core import jaxprs_in_params

from potara_jax.adapters import lora, precision
from potara_jax.models.vit import ViT, ViTConfig

CONFIG = ViTConfig(patch=2, width=16, depth=2, heads=2, classes=5)
MODEL, IMAGES = ViT(CONFIG), jax.random.uniform(jax.random.key(1), (3, 4, 4, 1))
SITES = lora.find_sites(MODEL, IMAGES, targets=".*")


def filled(tree, seed=0):
    """Numbers in the place of zeros."""
    rng = np.random.default_rng(seed)
    normal = lambda x: jnp.asarray(rng.normal(size=x.shape) / 4, jnp.float32)
    return jax.tree.map(normal, tree)


BASE = filled(jax.eval_shape(MODEL.init, jax.random.key(0), IMAGES)["params"])
ADAPTER = filled(
    lora.init(
        jax.random.key(0),
        lora.find_sites(MODEL, IMAGES, targets=["query", "out", "up"]),
        rank=2,
    )
)


def rounded(base):
    """The base with every kernel rounded as int8 rounds it, in float32."""
    flat = flatten_dict(dict(base), sep="/")
    for path, site in SITES.items():
        kernel = np.asarray(flat[f"{path}/kernel"])
        scale = np.abs(kernel).max(site.inputs, keepdims=True) / np.float32(127)
        flat[f"{path}/kernel"] = jnp.asarray(np.round(kernel / scale) * scale)
    return lora.unflatten_dict(flat, sep="/")


def test_int8_computes_what_the_rounded_base_computes():
    apply = jax.jit(lora.bind(MODEL, scale=0.5))
    actual = apply(precision.to_int8(BASE, SITES), ADAPTER, IMAGES)
    expected = apply(rounded(BASE), ADAPTER, IMAGES)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - apply(BASE, ADAPTER, IMAGES)).max() > 1e-4


@pytest.mark.parametrize("kind", precision.KINDS)
def test_collections_beside_the_parameters_stay_as_they_are(kind):
    statistics = {"norm": {"mean": jnp.ones(3)}}
    variables = {"params": BASE, "batch_stats": statistics}
    made = precision.KINDS[kind](variables, SITES)
    assert made["batch_stats"] is statistics
    expected = precision.KINDS[kind](BASE, SITES)
    jax.tree.map(np.testing.assert_array_equal, made["params"], expected)
    apply = jax.jit(lora.bind(MODEL, scale=0.5))
    actual = apply(made, ADAPTER, IMAGES)
    np.testing.assert_array_equal(actual, apply(expected, ADAPTER, IMAGES))


def test_int8_kernels_take_a_byte_a_number():
    small = flatten_dict(dict(precision.to_int8(BASE, SITES)), sep="/")
    kernels = {k: v for k, v in small.items() if k.endswith("kernel")}
    assert len(kernels) == len(SITES)
    assert {v.dtype for v in kernels.values()} == {jnp.dtype(jnp.int8)}
    for path in SITES:
        scale = small[f"{path}/{lora.INT8_SCALE}"]
        error = small[f"{path}/kernel"] * jnp.expand_dims(scale, SITES[path].inputs)
        error -= flatten_dict(dict(BASE), sep="/")[f"{path}/kernel"]
        assert (np.abs(error) <= 0.501 * scale).all()


def test_gradients_of_the_adapter_pass_through_an_int8_base():
    apply = jax.jit(lora.bind(MODEL, scale=0.5))
    loss = lambda adapter, base: (apply(base, adapter, IMAGES) ** 2).mean()
    actual = jax.grad(loss)(ADAPTER, precision.to_int8(BASE, SITES))
    expected = jax.grad(loss)(ADAPTER, rounded(BASE))
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, actual, expected)


def test_layers_that_a_model_scans_over_can_be_int8():
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            body = nn.scan(
                lambda module, x, _: (nn.tanh(nn.Dense(6, name="dense")(x)), None),
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True},
                length=3,
            )
            return body(self, x, None)[0]

    model, x = Stack(), jnp.ones((2, 6))
    base = filled(jax.jit(model.init)(jax.random.key(0), x)["params"], seed=2)
    sites = lora.find_sites(model, x, targets=".*")
    adapter = filled(lora.init(jax.random.key(0), sites, rank=2))
    apply = jax.jit(lora.bind(model, scale=1.0))
    actual = apply(precision.to_int8(base, sites), adapter, x)
    np.testing.assert_allclose(actual, apply(base, adapter, x), atol=0.05)


def test_a_module_that_is_trained_whole_is_not_scaled():
    apply = jax.jit(lora.bind(MODEL, scale=0.5))
    whole = lora.trained_modules(BASE, ("head",))
    flat = flatten_dict(dict(rounded(BASE)), sep="/")
    flat["head/kernel"] = BASE["head"]["kernel"]
    actual = apply(precision.to_int8(BASE, SITES), whole, IMAGES)
    expected = apply(lora.unflatten_dict(flat, sep="/"), {}, IMAGES)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_added_to_an_int8_base():
    add = lora.bind_add(SITES, scale=1.0)
    small = precision.to_int8(BASE, SITES)
    with pytest.raises(ValueError, match="'head' is int8: such a base"):
        add(small, {"head": jnp.ones((16, 5))})


def test_bfloat16_is_near_and_the_adapter_keeps_its_dtype():
    model = ViT(dataclasses.replace(CONFIG, dtype="bfloat16"))
    apply, exact = lora.bind(model, scale=0.5), lora.bind(MODEL, scale=0.5)
    small = precision.to_bfloat16(BASE)
    assert {x.dtype for x in jax.tree.leaves(small)} == {jnp.dtype(jnp.bfloat16)}
    actual = apply(small, ADAPTER, IMAGES)
    assert actual.dtype == jnp.bfloat16
    expected = exact(BASE, ADAPTER, IMAGES)
    np.testing.assert_allclose(actual, expected, atol=0.1 * np.abs(expected).max())
    loss = lambda adapter: apply(small, adapter, IMAGES).astype(jnp.float32).sum()
    grads = jax.grad(loss)(ADAPTER)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}


def test_activations_in_bfloat16_are_so_between_all_layers():
    model = ViT(dataclasses.replace(CONFIG, dtype="bfloat16"))
    apply = jax.jit(lora.bind(model, scale=0.5))
    traced = jax.make_jaxpr(apply)(precision.to_bfloat16(BASE), ADAPTER, IMAGES)
    products = list(dots(traced.jaxpr))
    assert len(products) > 20
    assert {x.aval.dtype for eqn in products for x in eqn.invars} == {
        jnp.dtype(jnp.bfloat16)
    }


def dots(jaxpr):
    """All matrix products of a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from dots(inner)


def test_rematerialised_blocks_compute_the_same_in_less_memory():
    loss = lambda apply: lambda adapter: (apply(BASE, adapter, IMAGES) ** 2).mean()
    again = ViT(dataclasses.replace(CONFIG, remat=True))
    actual, expected = (
        jax.jit(jax.grad(loss(lora.bind(model, scale=0.5))))(ADAPTER)
        for model in (again, MODEL)
    )
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, actual, expected)
    wide, deep = jnp.ones((100, 16, 16, 1)), dataclasses.replace(CONFIG, depth=3)
    base = jax.eval_shape(ViT(deep).init, jax.random.key(0), wide)["params"]

    def temporaries(**options):
        apply = lora.bind(ViT(dataclasses.replace(deep, **options)), scale=0.5)
        total = lambda adapter, base: (apply(base, adapter, wide) ** 2).mean()
        compiled = jax.jit(jax.grad(total)).lower(ADAPTER, base).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(remat=True) < temporaries(remat=False)
