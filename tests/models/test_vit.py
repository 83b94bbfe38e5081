import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from potara_jax.adapters import lora
from potara_jax.models import vit
from potara_jax.models.vit import ViT, ViTConfig

CONFIG = ViTConfig(patch=2, width=8, depth=2, heads=2, mlp_ratio=3, classes=5)
MODEL = ViT(CONFIG)
IMAGES = jax.random.uniform(jax.random.key(1), (3, 4, 6, 2))


@pytest.fixture(scope="module")
def params():
    """Parameters with no zeros, so that a forgotten bias shows."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), IMAGES)["params"]
    rng = np.random.default_rng(0)
    normal = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 3, leaf.dtype)
    return jax.tree.map(normal, shapes)


@pytest.fixture(scope="module")
def forward():
    return jax.jit(lambda params, images: MODEL.apply({"params": params}, images))


def test_parameters_have_the_paths_and_shapes_that_targets_rely_on():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), IMAGES)["params"]
    flat = {k: v.shape for k, v in flatten_dict(dict(shapes), sep="/").items()}
    kernels = {k[: -len("/kernel")]: v for k, v in flat.items() if "/kernel" in k}
    block = {
        "attention/query": (8, 2, 4),
        "attention/key": (8, 2, 4),
        "attention/value": (8, 2, 4),
        "attention/out": (2, 4, 8),
        "mlp/up": (8, 24),
        "mlp/down": (24, 8),
    }
    wanted = {f"block_{i}/{name}": s for i in range(2) for name, s in block.items()}
    assert kernels == wanted | {"embed": (2, 2, 2, 8), "head": (8, 5)}
    assert flat["token"] == (1, 1, 8)
    norms = {k.split("/scale")[0] for k in flat if k.endswith("scale")}
    assert norms == {"norm"} | {f"block_{i}/norm_{j}" for i in (0, 1) for j in (1, 2)}


@pytest.mark.parametrize(
    ("target", "paths"),
    [
        ("query", ["block_0/attention/query", "block_1/attention/query"]),
        ("block_1/mlp/(up|down)", ["block_1/mlp/down", "block_1/mlp/up"]),
        ("embed", ["embed"]),
    ],
)
def test_targets_find_their_modules(target, paths):
    assert sorted(lora.find_sites(MODEL, IMAGES, targets=[target])) == paths


@pytest.mark.parametrize(
    ("height", "width", "patch"), [(4, 6, 2), (8, 8, 4), (3, 3, 1)]
)
def test_tokens_are_the_patches_and_the_class_token(height, width, patch):
    model = ViT(ViTConfig(patch, width=4, depth=1, heads=1, classes=2))
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    tokens = (height // patch) * (width // patch) + 1
    assert params["position"].shape == (1, tokens, 4)


def test_logits_are_one_per_image_and_class(params, forward):
    logits = forward(params, IMAGES)
    assert logits.shape == (3, 5)
    assert logits.dtype == jnp.float32


def test_images_do_not_see_each_other(params, forward):
    changed = forward(params, IMAGES.at[1].add(1.0))
    before = forward(params, IMAGES)
    np.testing.assert_allclose(changed[::2], before[::2], rtol=1e-6)
    assert np.abs(changed[1] - before[1]).max() > 1e-3


@pytest.mark.parametrize("place", [(0, 0), (0, 5), (3, 0), (3, 5)])
def test_every_corner_of_an_image_is_seen(params, forward, place):
    changed = forward(params, IMAGES.at[0, *place].add(1.0))
    assert np.abs(changed[0] - forward(params, IMAGES)[0]).max() > 1e-4


def norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * p["scale"] + p["bias"]


def attend(x, p):
    project = lambda name: (
        np.einsum("ld,dhe->hle", x, p[name]["kernel"]) + (p[name]["bias"][:, None])
    )
    scores = project("query") @ project("key").swapaxes(1, 2) / np.sqrt(4)
    chances = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mixed = chances @ project("value")
    return np.einsum("hle,hed->ld", mixed, p["out"]["kernel"]) + p["out"]["bias"]


def feed_forward(x, p):
    x = x @ p["up"]["kernel"] + p["up"]["bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x @ p["down"]["kernel"] + p["down"]["bias"]


def test_forward_equals_numpy(params, forward):
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for image, logits in zip(IMAGES, forward(params, IMAGES), strict=True):
        patches = [image[i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2, 4)]
        embedded = [
            np.einsum("ijc,ijcd->d", patch, p["embed"]["kernel"]) for patch in patches
        ]
        x = np.stack([p["token"][0, 0], *(np.array(embedded) + p["embed"]["bias"])])
        x = x + p["position"][0]
        for block in (p["block_0"], p["block_1"]):
            x = x + attend(norm(x, block["norm_1"]), block["attention"])
            x = x + feed_forward(norm(x, block["norm_2"]), block["mlp"])
        wanted = norm(x, p["norm"])[0] @ p["head"]["kernel"] + p["head"]["bias"]
        np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)


def test_a_token_more_for_cudnn_changes_neither_logits_nor_gradients(
    params, monkeypatch
):
    padded = ViT(dataclasses.replace(CONFIG, attention="cudnn"))
    plain, seen = jax.nn.dot_product_attention, set()

    def recorded(query, *others, implementation, **options):
        seen.add((query.shape[1], implementation))
        return plain(query, *others, implementation="xla", **options)

    def with_gradient(model):
        loss = lambda p: (model.apply({"params": p}, IMAGES) ** 2).sum()
        return jax.value_and_grad(loss)(params)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    computed, wanted = with_gradient(padded), with_gradient(ViT(CONFIG))
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, computed, wanted)
    assert seen == {(8, "cudnn"), (7, "xla")}


@pytest.mark.parametrize("side", [4, 5])
def test_patches_are_embedded_as_by_a_convolution(side):
    images = jax.random.normal(jax.random.key(2), (2, side, 6, 3))
    plain = nn.Conv(4, (2, 2), strides=(2, 2), padding="VALID")
    variables = plain.init(jax.random.key(3), images)
    ours = plain.clone(conv_general_dilated=vit.matmul_of_patches)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(ours.apply(variables, images), plain.apply(variables, images))
