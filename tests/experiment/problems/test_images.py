"""Who has which classes of images."""

import dataclasses

import numpy as np
import pytest

from potara_jax.data.images import Images
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problems import images
from potara_jax.experiment.problems.images import PublicImages
from potara_jax.experiment.settings import Cells

RNG = np.random.default_rng(0)


def labelled(labels, side=8, colours=3) -> Images:
    labels = np.asarray(labels, np.int32)
    pixels = RNG.integers(0, 256, (len(labels), side, side, colours), np.uint8)
    return Images(pixels, labels, tuple(f"c{i}" for i in range(labels.max() + 1)))


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


@pytest.mark.parametrize(
    ("classes", "share", "mend"),
    [
        (2, 0.6, "with source.checkpoint, or give every client a folder"),
        (1, 0.0, "add images of other classes"),
        (8, 0.95, "set source.upstream so that both have, such as 0.25"),
    ],
)
def test_what_helps_where_classes_are_too_few_is_named(classes, share, mend):
    with pytest.raises(ValueError, match=mend):
        images.split_classes(labelled(np.arange(40) % classes), share, seed=0)


def test_images_for_tests_stay_marked_and_are_tested_alone():
    testing = np.arange(120) % 3 == 0
    every = labelled(np.arange(120) % 10)._replace(testing=testing)
    _, mine = images.split_classes(every, 0.6, seed=0)
    assert mine.testing.sum() == testing[np.isin(every.labels, mine_labels(mine))].sum()
    cells = Cells((0,), ("1",), clients=2)
    experiment = Experiment("", lambda *_: None, cells=cells)
    (federation,) = images.dealt(
        experiment, mine, test=9, testing=mine.testing
    ).values()
    tested = np.asarray(federation.test.index)[np.asarray(federation.test.weight) > 0]
    assert mine.testing[tested].all()
    pairs = zip(federation.train.index, federation.train.count, strict=True)
    for index, count in pairs:
        assert not mine.testing[np.asarray(index[:count])].any()


def of_tasks(every: Images, *heterogeneity: str):
    cells = Cells((0,), heterogeneity, clients=5)
    experiment = Experiment("", lambda *_: None, cells=cells)
    return images.dealt(experiment, every, test=9)


def test_with_tasks_clients_share_the_classes_and_see_images_in_their_own_way():
    every = labelled(np.arange(360) % 3)
    federations = of_tasks(every, "tasks", "0.5")
    known = {image.tobytes(): n for n, image in enumerate(every.images)}
    back = [
        lambda x: x,
        lambda x: x[:, :, ::-1],
        lambda x: 255 - x,
        lambda x: x.swapaxes(1, 2),
        lambda x: x,
    ]
    used: dict[str, set] = {"train": set(), "heldout": set(), "test": set()}
    for (heterogeneity, _), federation in federations.items():
        pool, labels = map(np.asarray, (federation.pool.inputs, federation.pool.labels))
        for part, places in used.items():
            for client, undo in enumerate(back):
                index = np.asarray(getattr(federation, part).index[client])
                if part != "test":
                    index = index[: int(getattr(federation, part).count[client])]
                seen = pool[index]
                originals = undo(seen) if heterogeneity == "tasks" else seen
                found = [known[x.tobytes()] for x in np.ascontiguousarray(originals)]
                np.testing.assert_array_equal(every.labels[found], labels[index])
                places |= set(found) if heterogeneity == "tasks" else set()
    assert not used["train"] & (used["heldout"] | used["test"])
    assert not used["heldout"] & used["test"]
    assert len(used["train"]) == 216, "each image for training belongs to one client"
    first, second = federations.values()
    assert first.pool is second.pool, "what is frozen is computed once"
    assert len(first.pool.labels) < 4 * len(every.labels), (
        "what nobody sees is left out"
    )
    np.testing.assert_allclose(first.proportions, 1 / 3, atol=0.1)
    assert first.task.tolist() == [0, 1, 2, 3, 0]


def test_images_that_are_not_square_have_no_transposed_ones():
    every = labelled(np.arange(360) % 3)
    wide = every._replace(images=every.images[:, :4])
    named = r"tasks transposes .* have 4 x 8 pixels.*--side"
    with pytest.raises(ValueError, match=named):
        of_tasks(wide, "tasks")
    of_tasks(wide, "0.5")


def mine_labels(mine: Images) -> list[int]:
    return [int(name.removeprefix("c")) for name in mine.names]


# --- A public data set ---------------------------------------------------------------


def copied(path, testing):
    """A user's copy of 60 images of 3 classes, with a test's part or without."""
    every = labelled(np.arange(60) % 3)
    parts = {"_train": ~testing, "_test": testing} if testing.any() else {"": ~testing}
    arrays = {f"x{name}": every.images[kept] for name, kept in parts.items()}
    labels = {f"y{name}": every.labels[kept] for name, kept in parts.items()}
    np.savez(path, **arrays, **labels)
    return PublicImages("", data=(path,))


def test_a_users_copy_of_a_data_set_keeps_its_split(tmp_path):
    source = copied(tmp_path / "a.npz", np.arange(60) % 4 == 0)
    read = images.public("cifar100", source, print)
    assert len(read.labels) == 60 and read.testing.sum() == 15
    source = copied(tmp_path / "b.npz", np.zeros(60, bool))
    assert images.public("cifar100", source, print).testing is None


@pytest.mark.parametrize("tested", [0, 15])
def test_some_images_of_each_class_and_part_are_drawn(tested, tmp_path):
    source = copied(tmp_path / "a.npz", np.arange(60) % 4 == (0 if tested else 4))
    every = images.public("cifar100", source, print)
    source = dataclasses.replace(source, class_examples=5)
    drawn = images.public("cifar100", source, print)
    parts = drawn.labels if drawn.testing is None else drawn.labels + 3 * drawn.testing
    assert np.bincount(parts).tolist() == [5] * (6 if tested else 3)
    again = images.public("cifar100", source, print)
    np.testing.assert_array_equal(again.images, drawn.images)
    places = [np.flatnonzero((every.images == x).all((1, 2, 3))) for x in drawn.images]
    np.testing.assert_array_equal(every.labels[np.concatenate(places)], drawn.labels)
    assert np.ptp(np.concatenate(places)) > 40  # from the whole, not its beginning


def test_the_first_classes_alone_are_used(tmp_path):
    source = copied(tmp_path / "a.npz", np.arange(60) % 4 == 0)
    every = images.public("cifar100", source, print)
    two = images.public("cifar100", dataclasses.replace(source, classes=2), print)
    assert two.names == every.names[:2]
    np.testing.assert_array_equal(two.images, every.images[every.labels < 2])
    np.testing.assert_array_equal(two.testing, every.testing[every.labels < 2])
    with pytest.raises(ValueError, match=r"source.classes is 4: .* at most 3"):
        images.public("cifar100", dataclasses.replace(source, classes=4), print)


def test_a_class_with_too_few_images_is_named():
    experiment = Experiment("", lambda *_: None)
    with pytest.raises(ValueError, match="class 'c1' has 2 images: it must have 5"):
        images.dealt(experiment, labelled([0] * 9 + [1] * 2), test=3)
