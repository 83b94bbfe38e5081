"""The models that read images."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Resources
from potara_jax.experiment.problems import image_models
from potara_jax.experiment.problems.images import ImageFiles
from potara_jax.experiment.settings import Pretraining
from potara_jax.models import publishing, vit, weights
from potara_jax.models.publishing import Form
from potara_jax.models.vit import ViT
from tests import small
from tests.experiment.problems.test_images import labelled
from tests.models.test_parity import FIXTURES

DINOV2 = str(FIXTURES / "dinov2")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    small.vision_model(folder / "vit")
    return folder


def test_images_are_enlarged_and_normalised_as_the_checkpoint_says(models):
    mine = labelled(np.arange(6) % 3)
    model = image_models.loaded(str(models / "vit"), mine)
    assert model.shape == (16, 16, 3) and model.config.classes == 3
    prepared = model.prepare(jnp.full((2, 8, 8, 3), 255, jnp.uint8))
    np.testing.assert_allclose(prepared, np.ones((2, 16, 16, 3)), rtol=1e-6)
    params = model.read()
    np.testing.assert_array_equal(params["head"]["kernel"], np.zeros((32, 3)))


# --- Heads ---------------------------------------------------------------------------


def chosen(upstream, mine):
    """The parameters of a small ViT that learns the upstream images."""
    source = ImageFiles(width=32, depth=1)
    settings = Pretraining(steps=2, batch_size=4)
    experiment = Experiment("", lambda *_: None, source=source, pretraining=settings)
    model = image_models.chosen(experiment, upstream, mine, Resources())
    assert model.config.classes == len(mine.names)
    return model.read()["head"]


def test_a_base_keeps_its_head_for_the_classes_that_clients_have():
    upstream = labelled(np.arange(8) % 4)
    whole = chosen(upstream, upstream)
    assert np.abs(whole["kernel"]).max() > 0
    mine = upstream._replace(names=("c3", "new", "c1"))
    head = chosen(upstream, mine)
    expected = np.stack([whole["kernel"][:, 3], np.zeros(32), whole["kernel"][:, 1]], 1)
    np.testing.assert_array_equal(head["kernel"], expected)
    bias = whole["bias"]
    np.testing.assert_array_equal(head["bias"], [bias[3], 0, bias[1]])
    others = upstream._replace(names=tuple("wxyz"))
    assert not np.any(chosen(upstream, others)["kernel"])


def test_a_checkpoint_keeps_its_head_for_the_classes_that_clients_have(tmp_path):
    small.vision_model(tmp_path / "vit")
    config = weights.read_config(tmp_path / "vit")
    model = ViT(vit.config_of(config, classes=2))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    params = dict(params) | {
        "head": {"kernel": jnp.ones((32, 2)) * jnp.array([2, 3]), "bias": jnp.ones(2)}
    }
    named = config | vit.described_names(("bird", "c1"))
    weights.save(tmp_path / "named", params, vit.TABLE, named)
    lines = []
    model = image_models.loaded(
        str(tmp_path / "named"), labelled([0, 1, 2]), log=lines.append
    )
    head = model.read()["head"]
    np.testing.assert_array_equal(head["kernel"], np.tile([0.0, 3, 0], (32, 1)))
    np.testing.assert_array_equal(head["bias"], [0, 1, 0])
    assert lines == [f"{tmp_path}/named knows 1 of the 3 classes: its head stays"]


def test_a_dinov2_reads_images_of_the_size_that_is_asked_for_with_its_first_layers():
    mine = labelled(np.arange(6) % 3)
    model = image_models.loaded(DINOV2, mine, image_size=16, layers=2)
    assert model.shape == (16, 16, 3) and model.config.grid == (6, 6)
    assert model.prepare(jnp.zeros((2, 8, 8, 3), jnp.uint8)).shape == (2, 16, 16, 3)
    params = model.read()
    assert "block_1" in params and "block_2" not in params
    np.testing.assert_array_equal(params["head"]["kernel"], np.zeros((64, 3)))
    inputs = jnp.zeros((1, *model.shape))
    logits = jax.eval_shape(ViT(model.config).apply, {"params": params}, inputs)
    assert logits.shape == (1, 3)


def test_a_dinov2_that_is_written_is_read_again(tmp_path):
    """As what it is: with two layers, and positions for the same images as before."""
    mine = labelled(np.arange(6) % 3)
    model = image_models.loaded(DINOV2, mine, image_size=16, layers=2)
    config, family = model.config, model.family
    description = family.description_of(config, side=16, colours=3, names="abc")
    form = Form(family.table, description, model.files, sites={}, scale=1.0)
    publishing.write_base(tmp_path / "base", model.read(), form)
    again = image_models.loaded(str(tmp_path / "base"), mine, image_size=16)
    assert again.config == config and again.family == family
    jax.tree.map(np.testing.assert_array_equal, again.read(), model.read())


@pytest.mark.parametrize(
    ("crop", "side"), [(16, 16), ({"height": 12, "width": 12}, 12), (None, 24)]
)
def test_images_are_as_large_as_the_preprocessor_crops_them(crop, side, tmp_path):
    folder = shutil.copytree(DINOV2, tmp_path / "dinov2")
    content = json.dumps({"crop_size": crop})
    (folder / "preprocessor_config.json").write_text(content)
    model = image_models.loaded(str(folder), labelled([0, 1]))
    assert model.shape == (side, side, 3)


def test_images_and_layers_that_a_checkpoint_does_not_have_are_refused():
    with pytest.raises(ValueError, match="images of 3 pixels are smaller than a patch"):
        image_models.loaded(DINOV2, labelled([0, 1]), image_size=3)
    with pytest.raises(ValueError, match="layers is 4: it must be between 1 and 3"):
        image_models.loaded(DINOV2, labelled([0, 1]), layers=4)


def test_an_image_size_that_is_not_the_weights_is_named(models, tmp_path):
    folder = small.with_config(models / "vit", tmp_path / "vit", {"image_size": 32})
    reason = r"image_size 32, but the weights are for images of 16 pixels per side"
    with pytest.raises(ValueError, match=reason):
        image_models.loaded(str(folder), labelled([0, 1]))


def test_colours_that_a_checkpoint_does_not_read_are_refused(models):
    with pytest.raises(ValueError, match="wants images of 3 colours, not 1"):
        image_models.loaded(str(models / "vit"), labelled([0, 1], colours=1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_size": ...}, "has no 'hidden_size'"),
        ({"image_size": [8, 8]}, r"images of \[8, 8\]: they must be square"),
        ({"model_type": "swin"}, "model_type is 'swin': it must be vit or dinov2"),
        ({"model_type": "deit"}, "whose distillation token is not supported"),
        ({"model_type": "dinov2_with_registers"}, "whose registers are not supported"),
    ],
)
def test_a_checkpoint_that_lacks_something_is_named(change, reason, models, tmp_path):
    folder = small.with_config(models / "vit", tmp_path / "vit", change)
    with pytest.raises(ValueError, match=reason):
        image_models.loaded(str(folder), labelled([0, 1]))


DAMAGED = [{"image_mean": None}, {"image_std": [0] * 3}, []]
DAMAGED += [{"crop_size": x} for x in ("8", 0, {}, {"height": 8, "width": 16})]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_preprocessor_is_named(content, models, tmp_path):
    folder = shutil.copytree(models / "vit", tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        image_models.loaded(str(folder), labelled([0, 1]))


def test_a_new_models_preprocessor_describes_how_it_reads_images():
    pixels = jnp.asarray(RNG.integers(0, 256, (2, 8, 8, 3)), jnp.uint8)
    described = json.loads(image_models._described_scaling((8, 8, 3)))
    mean, deviation = (np.array(described[n]) for n in ("image_mean", "image_std"))
    expected = (np.asarray(pixels) / 255 - mean) / deviation
    np.testing.assert_allclose(image_models._scaled(pixels), expected, atol=1e-6)
    assert jax.eval_shape(image_models._scaled, pixels).dtype == jnp.float32
