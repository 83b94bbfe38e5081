"""Who has which classes of images, and the models that read them."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.data.images import Images
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problems import images
from tests import small

RNG = np.random.default_rng(0)


def labelled(labels, side=8, colours=3) -> Images:
    labels = np.asarray(labels, np.int32)
    pixels = RNG.integers(0, 256, (len(labels), side, side, colours), np.uint8)
    return Images(pixels, labels, tuple(f"c{i}" for i in range(labels.max() + 1)))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    small.models(folder)
    return folder


def test_classes_are_split_between_the_base_and_the_clients():
    every = labelled(np.arange(60) % 10)
    upstream, mine = images.split_classes(every, 0.6, seed=0)
    assert (len(upstream.names), len(mine.names)) == (6, 4)
    assert sorted(upstream.names + mine.names) == sorted(every.names)
    for part in (upstream, mine):
        assert set(part.labels) == set(range(len(part.names)))
        for image, label in zip(part.images, part.labels, strict=True):
            place = (every.images == image).all((1, 2, 3)).argmax()
            assert every.names[every.labels[place]] == part.names[label]
    assert images.split_classes(every, 0.6, seed=1)[1].names != mine.names


def test_a_base_that_is_loaded_leaves_all_classes_to_the_clients():
    every = labelled([0, 1, 1, 2])
    upstream, mine = images.split_classes(every, 0, seed=0)
    assert len(upstream.labels) == 0
    np.testing.assert_array_equal(mine.images, every.images)
    np.testing.assert_array_equal(mine.labels, every.labels)


@pytest.mark.parametrize(("classes", "share"), [(3, 0.5), (1, 0.0), (4, 0.9)])
def test_too_few_classes_are_refused(classes, share):
    every = labelled(np.arange(20) % classes)
    with pytest.raises(ValueError, match=f"{classes} classes are too few"):
        images.split_classes(every, share, seed=0)


def test_a_class_with_too_few_images_is_named():
    experiment = Experiment("", lambda *_: None)
    with pytest.raises(ValueError, match="class 'c1' has 2 images: it must have 5"):
        images.dealt(experiment, labelled([0] * 9 + [1] * 2), test=3)


def test_images_are_enlarged_and_normalised_as_the_checkpoint_says(models):
    mine = labelled(np.arange(6) % 3)
    model = images.loaded(str(models / "vit"), mine)
    assert model.shape == (16, 16, 3) and model.config.classes == 3
    prepared = model.prepare(jnp.full((2, 8, 8, 3), 255, jnp.uint8))
    np.testing.assert_allclose(prepared, np.ones((2, 16, 16, 3)), rtol=1e-6)
    params = model.read()
    np.testing.assert_array_equal(params["head"]["kernel"], np.zeros((32, 3)))


def test_colours_that_a_checkpoint_does_not_read_are_refused(models):
    with pytest.raises(ValueError, match="wants images of 3 colours, not 1"):
        images.loaded(str(models / "vit"), labelled([0, 1], colours=1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_size": ...}, "has no 'hidden_size'"),
        ({"image_size": [8, 8]}, r"images of \[8, 8\]: they must be square"),
    ],
)
def test_a_checkpoint_that_lacks_something_is_named(change, reason, models, tmp_path):
    folder = shutil.copytree(models / "vit", tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text()) | change
    kept = {name: value for name, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=reason):
        images.loaded(str(folder), labelled([0, 1]))


@pytest.mark.parametrize("content", [{"image_mean": None}, {"image_std": [0] * 3}, []])
def test_a_damaged_preprocessor_is_named(content, models, tmp_path):
    folder = shutil.copytree(models / "vit", tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        images.loaded(str(folder), labelled([0, 1]))


def test_what_is_written_of_a_new_model_is_how_it_reads_images():
    pixels = jnp.asarray(RNG.integers(0, 256, (2, 8, 8, 3)), jnp.uint8)
    described = json.loads(images._described_scaling((8, 8, 3)))
    mean, deviation = (np.array(described[n]) for n in ("image_mean", "image_std"))
    expected = (np.asarray(pixels) / 255 - mean) / deviation
    np.testing.assert_allclose(images._scaled(pixels), expected, atol=1e-6)
    assert jax.eval_shape(images._scaled, pixels).dtype == jnp.float32
