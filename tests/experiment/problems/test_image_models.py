"""The models that read images."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.experiment.problems import image_models
from tests import small
from tests.experiment.problems.test_images import labelled

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    small.models(folder)
    return folder


def test_images_are_enlarged_and_normalised_as_the_checkpoint_says(models):
    mine = labelled(np.arange(6) % 3)
    model = image_models.loaded(str(models / "vit"), mine)
    assert model.shape == (16, 16, 3) and model.config.classes == 3
    prepared = model.prepare(jnp.full((2, 8, 8, 3), 255, jnp.uint8))
    np.testing.assert_allclose(prepared, np.ones((2, 16, 16, 3)), rtol=1e-6)
    params = model.read()
    np.testing.assert_array_equal(params["head"]["kernel"], np.zeros((32, 3)))


def test_colours_that_a_checkpoint_does_not_read_are_refused(models):
    with pytest.raises(ValueError, match="wants images of 3 colours, not 1"):
        image_models.loaded(str(models / "vit"), labelled([0, 1], colours=1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_size": ...}, "has no 'hidden_size'"),
        ({"image_size": [8, 8]}, r"images of \[8, 8\]: they must be square"),
    ],
)
def test_a_checkpoint_that_lacks_something_is_named(change, reason, models, tmp_path):
    folder = small.with_config(models / "vit", tmp_path / "vit", change)
    with pytest.raises(ValueError, match=reason):
        image_models.loaded(str(folder), labelled([0, 1]))


@pytest.mark.parametrize("content", [{"image_mean": None}, {"image_std": [0] * 3}, []])
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
