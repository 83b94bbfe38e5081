import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from potara_jax.data.federation import Batch
from potara_jax.models import pretraining
from potara_jax.models.pretraining import Keeper, Listener, pretrain
from potara_jax.models.vit import ViT, ViTConfig
from tests.helpers_federated import assert_equal, differs

LABELS = jnp.arange(30) % 3
INPUTS = jax.nn.one_hot(LABELS, 4)


def mean_loss(apply):
    def loss(params, batch):
        logits = apply(params, batch.inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses.mean()

    return loss


def fit_linear(seed, on_step=None, on_pace=None, keeper=None):
    params = {"w": jnp.zeros((4, 3))}
    trained, losses = pretrain(
        mean_loss(lambda params, inputs: inputs @ params["w"]),
        params,
        Batch(INPUTS, LABELS),
        jax.random.key(seed),
        steps=40,
        batch_size=8,
        learning_rate=0.1,
        listener=on_step and Listener(on_step, on_pace or (lambda *args: None)),
        keeper=keeper,
    )
    np.testing.assert_array_equal(params["w"], np.zeros((4, 3)))
    return trained, losses


@pytest.fixture(scope="module")
def fitted():
    return fit_linear(0)


def test_pretraining_lowers_the_loss(fitted):
    params, losses = fitted
    assert losses.shape == (40,)
    assert losses.dtype == jnp.float32
    assert losses[-5:].mean() < 0.5 * losses[0]
    np.testing.assert_array_equal(jnp.argmax(INPUTS @ params["w"], -1), LABELS)


def test_the_learning_rate_starts_from_zero(fitted):
    _, losses = fitted
    np.testing.assert_allclose(losses[:2], np.log(3), rtol=1e-5)
    assert losses[2] < losses[1]


def test_pretraining_is_a_function_of_the_key(fitted):
    assert_equal(fit_linear(0), fitted)
    assert differs(fit_linear(1), fitted)


def test_progress_is_reported_and_changes_nothing_else(fitted):
    steps = []
    params, losses = fit_linear(0, on_step=lambda *args: steps.append(args))
    assert [step for step, _ in steps] == list(range(2, 41, 2))
    np.testing.assert_allclose(losses, fitted[1], rtol=1e-5)
    np.testing.assert_allclose(params["w"], fitted[0]["w"], rtol=1e-5, atol=1e-6)


def test_an_interrupted_training_goes_on_to_the_same_bytes(monkeypatch):
    monkeypatch.setattr(pretraining, "_SECONDS_BETWEEN_SAVES", 0.0)
    kept = []

    def save(progress):
        kept.append(jax.tree.map(np.array, progress))  # the next step takes the arrays
        if len(kept) == 23:
            raise KeyboardInterrupt

    silent = lambda *args: None
    whole = fit_linear(0, silent)
    with pytest.raises(KeyboardInterrupt):
        fit_linear(0, silent, keeper=Keeper(lambda like: None, save))
    steps, again = [], []

    def load(like):
        assert jax.tree.structure(like) == jax.tree.structure(kept[-1])
        return jax.tree.map(jnp.asarray, kept[-1])

    rest = fit_linear(
        0, lambda done, loss: steps.append(done), keeper=Keeper(load, again.append)
    )
    assert_equal(rest, whole)
    assert len(again) == 40 - 23 and min(steps) == 24


def test_the_pace_is_that_of_the_first_steps():
    paces = []
    fit_linear(0, lambda *args: None, lambda *args: paces.append(args))
    ((done, seconds),) = paces
    assert done == 6 and 0 < seconds < 10


def test_pretraining_lowers_the_loss_of_a_vision_transformer():
    model = ViT(ViTConfig(patch=2, width=8, depth=1, heads=2, mlp_ratio=2, classes=3))
    columns = jnp.repeat(INPUTS[:, None, :, None], 4, axis=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), columns)["params"]
    rng = np.random.default_rng(0)
    normal = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 3, jnp.float32)
    _, losses = pretrain(
        mean_loss(lambda params, images: model.apply({"params": params}, images)),
        jax.tree.map(normal, shapes),
        Batch(columns, LABELS),
        jax.random.key(1),
        steps=100,
        batch_size=8,
        learning_rate=0.03,
    )
    assert losses[-10:].mean() < 0.2 * losses[:5].mean()
