import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.models.pretraining import pretrain
from potara_jax.models.vit import ViT, ViTConfig
from tests.helpers_federated import assert_equal, differs

MODEL = ViT(ViTConfig(patch=2, width=8, depth=1, heads=2, mlp_ratio=2, classes=3))
LABELS = jnp.arange(30) % 3
IMAGES = jax.random.uniform(jax.random.key(1), (30, 4, 4, 1)) + LABELS.reshape(
    -1, 1, 1, 1
)
STEPS = 40


def fit(seed):
    apply = lambda params, images: MODEL.apply({"params": params}, images)
    params = MODEL.init(jax.random.key(0), IMAGES)["params"]
    return pretrain(
        apply,
        params,
        IMAGES,
        LABELS,
        jax.random.key(seed),
        steps=STEPS,
        batch_size=8,
        learning_rate=1e-2,
    )


@pytest.fixture(scope="module")
def fitted():
    return fit(0)


def test_pretraining_lowers_the_loss(fitted):
    _, losses = fitted
    assert losses.shape == (STEPS,)
    assert losses.dtype == jnp.float32
    assert losses[-5:].mean() < 0.5 * losses[:5].mean()


def test_pretrained_parameters_classify_the_images(fitted):
    logits = MODEL.apply({"params": fitted[0]}, IMAGES)
    assert np.mean(np.argmax(logits, -1) == LABELS) > 0.9


def test_pretraining_is_a_function_of_the_key(fitted):
    assert_equal(fit(0), fitted)
    assert differs(fit(1), fitted)


def test_parameters_given_are_left_alone():
    params = {"w": jnp.ones((1, 3))}
    inputs = jnp.arange(6.0)[:, None]
    key = jax.random.key(0)
    options = {"steps": 3, "batch_size": 2, "learning_rate": 0.1}
    apply = lambda params, x: x @ params["w"]
    trained, _ = pretrain(apply, params, inputs, LABELS[:6], key, **options)
    np.testing.assert_array_equal(params["w"], np.ones((1, 3)))
    assert differs(trained, params)
