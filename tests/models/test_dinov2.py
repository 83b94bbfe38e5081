"""DINOv2, and position embeddings that are interpolated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.adapters import lora
from potara_jax.models import dinov2, positions, vit, weights
from potara_jax.models.vit import ViT
from tests.models.test_parity import FIXTURES, golden

CLOSE = dict(atol=1e-5, rtol=1e-5)
NAMES = "dinov2", "dinov2-swiglu"


def description(name, **change):
    return weights.read_config(FIXTURES / name) | change


def model_of(name, **options):
    return ViT(dinov2.config_of(description(name), **options))


def params_of(name, model, image):
    """The parameters in the files, and a head of zeros where they have none."""
    shapes = dict(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    head = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes["head"])
    if name != "dinov2":
        del shapes["head"]
    table = dinov2.TABLE.without_layers(range(model.config.depth, 3))
    return {"head": head} | weights.load(FIXTURES / name, table, shapes)


def computed(model, params, image):
    """Logits, every block's output, and the normed features."""
    apply = lambda p, x: model.apply({"params": p}, x, capture_intermediates=True)
    logits, seen = jax.jit(apply)(params, image)
    output = lambda name: seen["intermediates"][name]["__call__"][0]
    blocks = [output(f"block_{i}") for i in range(model.config.depth)]
    return logits, blocks, output("norm")


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_all_states_equal_those_of_transformers(name, size):
    reference = {k.removesuffix(f"_{size}"): x for k, x in golden(name).items()}
    model, image = model_of(name), jnp.asarray(reference["images"])
    params = params_of(name, model, image)
    assert {x.dtype.name for x in jax.tree.leaves(params["block_0"])} == {
        "float16" if name == "dinov2-swiglu" else "float32"
    }
    logits, blocks, features = computed(model, params, image)
    states = [model.apply({"params": params}, image, stop=0), *blocks]
    for state, expected in zip(states, reference["hidden"], strict=True):
        np.testing.assert_allclose(state, expected, **CLOSE)
    last = logits if name == "dinov2" else features
    np.testing.assert_allclose(last, reference["last"], **CLOSE)


def test_the_first_layers_with_the_last_norm_equal_transformers():
    model, reference = model_of("dinov2", layers=2), golden("dinov2")
    image = jnp.asarray(reference["images_0"])
    params = params_of("dinov2", model, image)
    assert "block_2" not in params
    features = computed(model, params, image)[2]
    np.testing.assert_allclose(features, reference["fewer_layers"], **CLOSE)


def test_a_vit_of_another_image_size_equals_transformers():
    folder = FIXTURES / "vit"
    with np.load(folder / "other-size.npz") as file:
        image, expected = jnp.asarray(file["images"]), file["logits"]
    model = ViT(vit.config_of(weights.read_config(folder)))
    assert image.shape[1:3] != (16, 16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params = weights.load(folder, vit.TABLE, shapes)
    logits = jax.jit(lambda p, x: model.apply({"params": p}, x))(params, image)
    np.testing.assert_allclose(logits, expected, **CLOSE)


# --- Positions -----------------------------------------------------------------------


def test_cubic_weights_are_those_of_pytorch():
    """`interpolate(eye(4)[None], size, mode="bicubic")` of a single row, by hand.

    Half as many outputs lie halfway between inputs, where the kernel of slope -3/4 is
    -3/32, 19/32, 19/32, -3/32; the first input stands for those beyond it.
    """
    half = np.array([[16, 19, -3, 0], [0, -3, 19, 16]]) / 32
    np.testing.assert_allclose(positions.cubic(4, 2), half, atol=1e-7)
    np.testing.assert_array_equal(positions.cubic(5, 5), np.eye(5))


@pytest.mark.parametrize(("inputs", "outputs"), [(37, 16), (3, 8), (4, 7), (1, 3)])
def test_cubic_interpolation_keeps_constants_and_symmetry(inputs, outputs):
    matrix = positions.cubic(inputs, outputs)
    np.testing.assert_allclose(matrix.sum(1), np.ones(outputs), atol=1e-6)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)


def test_cubic_interpolation_is_exact_for_lines_away_from_the_borders():
    line = np.arange(20.0)
    places = (np.arange(10) + 0.5) * 2 - 0.5
    inner = slice(1, -1)
    fitted = positions.cubic(20, 10) @ line
    np.testing.assert_allclose(fitted[inner], places[inner], rtol=1e-6)


def test_rows_are_rows_and_the_class_token_stays():
    token, patches = np.full((1, 1, 2), 9.0), np.zeros((2, 3, 2))
    patches[1] = 1.0  # the lower row
    position = jnp.concatenate([token, patches.reshape(1, 6, 2)], 1)
    fitted = positions.fitted(position.astype(jnp.bfloat16), (2, 3), (4, 3))
    assert fitted.shape == (1, 13, 2) and fitted.dtype == jnp.float32
    np.testing.assert_array_equal(fitted[0, 0], [9, 9])
    rows = np.asarray(fitted[0, 1:]).reshape(4, 3, 2)
    np.testing.assert_array_equal(rows, np.broadcast_to(rows[:, :1, :1], rows.shape))
    np.testing.assert_allclose(rows[:, 0, 0], 1 - rows[::-1, 0, 0], atol=1e-6)
    assert rows[0, 0, 0] < 0.05 < 0.95 < rows[3, 0, 0]


# --- LoRA ----------------------------------------------------------------------------

LAYERS = "attention/query", "attention/key", "attention/value", "attention/out"


@pytest.mark.parametrize(
    ("name", "mlp"),
    [
        ("dinov2", {"up": "fc1", "down": "fc2"}),
        ("dinov2-swiglu", {"weights_in": "weights_in", "weights_out": "weights_out"}),
    ],
)
def test_lora_adapts_all_projections_of_a_block(name, mlp):
    model, image = model_of(name), jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.float32)
    sites = lora.find_sites(model, image, targets=["block_1/(attention|mlp)/.*"])
    assert set(sites) == {f"block_1/{x}" for x in (*LAYERS, *(f"mlp/{x}" for x in mlp))}
    for ours, theirs in mlp.items():
        stored = weights.stored_as(f"block_1/mlp/{ours}/kernel", (1, 1), dinov2.TABLE)
        assert stored.names == (f"dinov2.encoder.layer.1.mlp.{theirs}.weight",)


def test_remat_changes_no_gradient_and_bfloat16_stays_close():
    config = dinov2.config_of(description("dinov2"), layers=1)
    image = jnp.asarray(golden("dinov2")["images_1"])[:, :8, :12]
    params = params_of("dinov2", ViT(config), image)

    def gradient(**change):
        model = ViT(dataclasses.replace(config, **change))
        loss = lambda p: (model.apply({"params": p}, image) ** 2).astype(float).mean()
        return jax.jit(jax.grad(loss))(params)

    exact = gradient()
    scales = [exact["block_0"][f"scale_{i}"]["scale"] for i in (1, 2)]
    assert all(np.abs(x).min() > 0 for x in scales)
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, exact, gradient(remat=True))
    norm = lambda x: np.linalg.norm(jnp.concatenate([y.ravel() for y in x]))
    ours, half = (jax.tree.leaves(x) for x in (exact, gradient(dtype="bfloat16")))
    assert norm([x - y for x, y in zip(ours, half, strict=True)]) < 0.05 * norm(ours)


# --- Descriptions --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_described_model_is_itself(name):
    config = dinov2.config_of(description(name), classes=3, layers=2)
    again = dinov2.description_of(config, side=99, colours=3, names="abc")
    assert again["image_size"] == 24 and again["num_hidden_layers"] == 2
    assert dinov2.config_of(again) == config


def test_a_description_without_sizes_of_images_has_those_of_transformers():
    given = {"model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12}
    config = dinov2.config_of(given | {"num_attention_heads": 6})
    assert config.patch == 14 and config.grid == (16, 16) and config.mlp_ratio == 4
    assert config.epsilon == 1e-6 and config.activation == "gelu" and not config.gated


REFUSED = [
    ({"model_type": "dinov2_with_registers"}, "whose registers are not supported"),
    ({"model_type": "vit"}, "model_type is 'vit': it must be dinov2"),
    ({"qkv_bias": False}, "it must be dinov2, with biases"),
    ({"hidden_act": "relu6"}, "hidden_act is 'relu6': it must be one of gelu"),
    ({"mlp_ratio": 2.5}, "mlp_ratio is 2.5: it must be an integer"),
    ({"image_size": [24, 24]}, r"images of \[24, 24\]: they must be square"),
    ({"image_size": 3}, "image_size is 3, smaller than a patch of 4"),
    ({"num_attention_heads": 5}, "not a multiple of num_attention_heads"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED)
def test_models_that_cannot_be_read_are_refused(change, reason):
    with pytest.raises(ValueError, match=reason):
        dinov2.config_of(description("dinov2", **change))


@pytest.mark.parametrize("layers", [0, 4])
def test_layers_that_a_model_does_not_have_are_refused(layers):
    with pytest.raises(ValueError, match=f"layers is {layers}: .* between 1 and 3"):
        dinov2.config_of(description("dinov2"), layers=layers)
