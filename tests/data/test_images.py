import os

import numpy as np
import pytest
from PIL import Image

from potara_jax.data import images

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 4, 4, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def written(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_arrays_are_read_with_names(tmp_path):
    names = np.array(["cat", "dog", "emu"])
    path = written(tmp_path / "a.npz", images=PIXELS, labels=LABELS, names=names)
    loaded = images.read([path])
    np.testing.assert_array_equal(loaded.images, PIXELS)
    np.testing.assert_array_equal(loaded.labels, LABELS)
    assert loaded.names == ("cat", "dog", "emu")


def test_several_files_agree_on_classes_by_name(tmp_path):
    some = written(
        tmp_path / "a.npz", images=PIXELS[:2], labels=LABELS[:2], names=["b", "c"]
    )
    more = written(tmp_path / "b.npz", images=PIXELS[2:3], labels=[0], names=["a"])
    loaded = images.read([some, more])
    assert loaded.names == ("a", "b", "c")
    assert loaded.labels.tolist() == [1, 2, 0]


def test_numbered_classes_are_sorted_and_grey_images_have_one_colour(
    tmp_path,
):
    labels = np.array([10, 9, 0, 0, 0, 0])
    path = written(tmp_path / "a.npz", images=PIXELS[..., 0], labels=labels)
    loaded = images.read([path])
    assert loaded.images.shape == (6, 4, 4, 1)
    assert loaded.names == ("0", "9", "10") and loaded.labels[:3].tolist() == [2, 1, 0]


def test_only_plain_numbers_of_some_digits_sort_as_numbers(tmp_path):
    names = np.array(["²", "9" * 30, "10", "9", "a", "01"])
    path = written(tmp_path / "a.npz", images=PIXELS, labels=np.arange(6), names=names)
    loaded = images.read([path])
    assert loaded.names == ("01", "9", "10", "9" * 30, "a", "²")


def folder(path):
    for name, pixels in (("cat", PIXELS[:2]), ("dog", PIXELS[2:5])):
        (path / name).mkdir(parents=True)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(path / name / f"{number}.png")
    (path / "dog" / "notes.txt").write_text("no image")
    return path


def test_a_folder_has_a_class_a_sub_folder(tmp_path):
    loaded = images.read([folder(tmp_path / "root")])
    np.testing.assert_array_equal(loaded.images, PIXELS[:5])
    assert loaded.labels.tolist() == [0, 0, 1, 1, 1]
    assert loaded.names == ("cat", "dog")


def test_images_are_resized_to_a_given_side(tmp_path):
    root = folder(tmp_path / "root")
    Image.fromarray(RNG.integers(0, 256, (9, 7, 3), np.uint8)).save(root / "cat/x.png")
    with pytest.raises(ValueError, match=r"x\.png is 9 x 7 x 3.*set side"):
        images.read([root])
    assert images.read([root], side=8).images.shape == (6, 8, 8, 3)
    path = written(tmp_path / "a.npz", images=PIXELS, labels=LABELS)
    with pytest.raises(ValueError, match="differ in size"):
        images.read(
            [path, written(tmp_path / "b.npz", images=PIXELS[:, :2], labels=LABELS)]
        )
    assert images.read([path], side=8).images.shape == (6, 8, 8, 3)


BAD = [
    ({"images": PIXELS}, "holds images: it needs images and labels"),
    ({"images": PIXELS / 255, "labels": LABELS}, "must be uint8"),
    ({"images": PIXELS, "labels": LABELS[:2]}, "must be 6 integers"),
    ({"images": PIXELS, "labels": LABELS - 1}, "a label is -1"),
    (
        {"images": PIXELS, "labels": LABELS, "names": ["a"]},
        "has 1 names, but a label 2",
    ),
    ({"images": PIXELS[:0], "labels": LABELS[:0]}, "must be uint8"),
    ({"images": PIXELS[:, :0], "labels": LABELS}, "must be uint8"),
    ({"images": np.zeros((6, 3, 9, 9), np.uint8), "labels": LABELS}, "transpose them"),
    ({"images": PIXELS, "labels": LABELS, "names": list("aba")}, "two classes 'a'"),
    (
        {"images": PIXELS, "labels": LABELS, "names": ["a", "b", "\udcff"]},
        "names are not valid text",
    ),
]


@pytest.mark.parametrize(("arrays", "reason"), BAD)
def test_arrays_that_do_not_fit_are_named(tmp_path, arrays, reason):
    with pytest.raises(ValueError, match=reason):
        images.read([written(tmp_path / "a.npz", **arrays)])


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"neither an \.npz file nor a folder"):
        images.read([tmp_path / "none.npz"])
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(ValueError, match=r"bad\.npz is damaged"):
        images.read([tmp_path / "bad.npz"])
    root = folder(tmp_path / "root")
    (root / "cat" / "z.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"z\.png is no readable image"):
        images.read([root])
    (root / "cat" / "z.png").unlink()
    os.mkfifo(root / "cat" / "z.png")
    with pytest.raises(ValueError, match=r"z\.png is no readable image .*no file"):
        images.read([root])
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no image"):
        images.read([root])
    np.save(tmp_path / "c.npy", PIXELS)
    (tmp_path / "c.npy").rename(tmp_path / "c.npz")
    with pytest.raises(ValueError, match=r"c\.npz is damaged or no \.npz"):
        images.read([tmp_path / "c.npz"])


def test_classes_are_those_that_have_images(tmp_path):
    labels = np.array([1, 2**33, 1, 5, 5, 5])
    path = written(tmp_path / "a.npz", images=PIXELS, labels=labels)
    assert images.read([path]).names == ("1", "5", str(2**33))
    named = {"labels": LABELS % 2, "names": np.array([b"a", b"b", b"c"])}
    path = written(tmp_path / "b.npz", images=PIXELS, **named)
    assert images.read([path]).names == ("a", "b")


def test_hidden_files_are_ignored_and_grey_images_join_coloured_ones(tmp_path):
    root = folder(tmp_path / "root")
    (root / ".ipynb_checkpoints").mkdir()
    (root / "cat" / "._0.png").write_bytes(b"a mac's")
    Image.fromarray(PIXELS[5, ..., 0]).save(root / "cat" / "9.png")
    loaded = images.read([root])
    assert loaded.images.shape == (6, 4, 4, 3)
    np.testing.assert_array_equal(
        loaded.images[2], np.repeat(PIXELS[5, ..., :1], 3, -1)
    )
    Image.fromarray(np.full((4, 4), 60000, np.uint16)).save(root / "dog" / "9.png")
    with pytest.raises(ValueError, match=r"9\.png .*8 bits per colour"):
        images.read([root])


def test_duplicates_are_kept_once_and_dropped_if_labels_differ():
    root = PIXELS[[0, 1, 0, 2, 1, 3]]
    lines = []
    loaded = images.without_duplicates(
        images.Images(root, np.array([0, 1, 0, 1, 0, 1]), ("a", "b")), lines.append
    )
    np.testing.assert_array_equal(loaded.images, PIXELS[[0, 2, 3]])
    assert loaded.labels.tolist() == [0, 1, 1]
    assert lines == [
        "3 images are duplicates: one of each is kept",
        "2 of them have copies with another label: none of those is kept",
    ]
