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
    ({"images": PIXELS * 2.5, "labels": LABELS}, "must be uint8"),
    ({"images": PIXELS.astype(np.uint16) + 300, "labels": LABELS}, "must be uint8"),
    ({"images": PIXELS[..., :2], "labels": LABELS}, "1 or 3 colours, not 2"),
    ({"images": np.zeros((6, 10)), "labels": LABELS}, "rows of 10 pixels are no"),
    ({"images": PIXELS, "labels": LABELS[:, None] * [1, 2]}, "must be 6 integers"),
    ({"images": PIXELS, "labels": LABELS + 0.5}, "must be 6 integers"),
    ({"images": PIXELS, "labels": np.array([{}] * 6)}, "labels holds Python objects"),
    ({"pixels": PIXELS, "y": LABELS}, "it needs images and labels, or x and y"),
    ({"images": PIXELS, "labels": LABELS[:2]}, "must be 6 integers"),
    ({"images": PIXELS, "labels": LABELS - 1}, "a label is -1"),
    (
        {"images": PIXELS, "labels": LABELS, "names": ["a"]},
        "has 1 names, but a label 2",
    ),
    ({"images": PIXELS[:0], "labels": LABELS[:0]}, "must be uint8"),
    ({"images": PIXELS[:, :0], "labels": LABELS}, "must be uint8"),
    ({"images": PIXELS, "labels": LABELS, "names": list("aba")}, "two classes 'a'"),
    (
        {"images": PIXELS, "labels": LABELS, "names": ["a", "b", "\udcff"]},
        "names are not valid text",
    ),
]


UNDERSTOOD = [
    {"x": PIXELS, "y": LABELS},
    {"X_train": PIXELS, "y_train": LABELS},
    {"train_images": PIXELS, "train_labels": LABELS},
    {"data": PIXELS, "targets": LABELS},
    {"images": PIXELS, "labels": LABELS[:, None]},
    {"images": PIXELS, "labels": LABELS.astype(float)},
    {"images": PIXELS, "labels": np.eye(3)[LABELS]},
    {"images": (PIXELS / 255).astype(np.float32), "labels": LABELS},
    {"images": PIXELS / 127.5 - 1, "labels": LABELS},
    {"images": PIXELS.astype(np.int64), "labels": LABELS},
    {"images": PIXELS.astype(np.float32), "labels": LABELS},
]


@pytest.mark.parametrize("arrays", UNDERSTOOD)
def test_usual_names_numbers_and_labels_are_understood(tmp_path, arrays):
    lines = []
    loaded = images.read([written(tmp_path / "a.npz", **arrays)], log=lines.append)
    np.testing.assert_array_equal(loaded.images, PIXELS)
    assert loaded.labels.tolist() == LABELS.tolist() and loaded.names == ("0", "1", "2")
    pixels, labels = arrays.values()
    converted = pixels.dtype != np.uint8 or labels.ndim == 2
    assert len(lines) == converted
    if converted:
        assert "read as" in lines[0] and str(tmp_path / "a.npz") in lines[0]


def test_colours_may_come_first_and_images_may_be_flat(tmp_path):
    pixels = RNG.integers(0, 256, (6, 3, 9, 9), np.uint8)
    path, lines = written(tmp_path / "a.npz", images=pixels, labels=LABELS), []
    loaded = images.read([path], log=lines.append)
    np.testing.assert_array_equal(loaded.images, pixels.transpose(0, 2, 3, 1))
    assert "uint8 [6, 3, 9, 9], read as uint8 [6, 9, 9, 3]" in lines[0]
    path = written(tmp_path / "b.npz", x=pixels[:, 0].reshape(6, 81), y=LABELS)
    np.testing.assert_array_equal(images.read([path]).images[..., 0], pixels[:, 0])


def test_labels_may_be_texts(tmp_path):
    labels = np.array(["cat", "ant", "cat", "bee", "bee", "ant"])
    loaded = images.read([written(tmp_path / "a.npz", images=PIXELS, labels=labels)])
    assert loaded.names == ("ant", "bee", "cat")
    assert loaded.labels.tolist() == [2, 0, 2, 1, 1, 0]


def test_test_images_of_a_file_are_marked(tmp_path):
    parts = {"x_train": PIXELS[:4], "y_train": LABELS[:4]}
    parts |= {"x_test": PIXELS[4:], "y_test": LABELS[4:]}
    lines = []
    loaded = images.read([written(tmp_path / "a.npz", **parts)], log=lines.append)
    assert loaded.testing.tolist() == [False] * 4 + [True] * 2
    assert "2 test images are used for tests only" in lines[0]
    chosen = loaded.select(np.array([0, 5]))
    assert chosen.testing.tolist() == [False, True]
    joined = images.join([loaded, loaded._replace(testing=None)], "ab")
    assert joined.testing.tolist() == [False] * 4 + [True] * 2 + [False] * 6


@pytest.mark.parametrize("end", ["ppm", "PNG", "tga", "jp2"])
def test_folders_of_training_and_test_images_are_understood(tmp_path, end):
    for part, numbers in (("train", (0, 1)), ("val", (2,)), ("test", (3, 4))):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in numbers:
                path = tmp_path / part / name / f"{number}.{end}"
                Image.fromarray(PIXELS[number]).save(path)
    loaded = images.read([tmp_path])
    assert loaded.names == ("cat", "dog")
    assert loaded.testing.sum() == 4 and len(loaded.labels) == 10
    np.testing.assert_array_equal(loaded.images[loaded.testing][:2], PIXELS[3:5])


def test_images_without_folders_of_classes_are_named(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="holds images, but no sub-folders"):
        images.read([tmp_path])


def test_a_fourth_colour_is_left_out(tmp_path):
    opaque = np.concatenate([PIXELS, PIXELS[..., :1]], -1)
    path, lines = written(tmp_path / "a.npz", images=opaque, labels=LABELS), []
    loaded = images.read([path], log=lines.append)
    np.testing.assert_array_equal(loaded.images, PIXELS)
    assert "read as uint8 [6, 4, 4, 3]" in lines[0]


def test_a_folder_of_arrays_is_read(tmp_path):
    written(tmp_path / "a.npz", x=PIXELS[:2], y=LABELS[:2])
    written(tmp_path / "b.npz", x=PIXELS[2:], y=LABELS[2:])
    np.testing.assert_array_equal(images.read([tmp_path]).images, PIXELS)


def test_of_copies_one_that_only_tests_may_use_is_kept():
    testing = np.array([False, False, True, False])
    pixels = PIXELS[[0, 1, 0, 2]]
    given = images.Images(pixels, np.array([0, 1, 0, 1]), ("a", "b"), testing)
    kept = images.without_duplicates(given, lambda line: None)
    np.testing.assert_array_equal(kept.images, PIXELS[[1, 0, 2]])
    assert kept.testing.tolist() == [False, True, False]


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
