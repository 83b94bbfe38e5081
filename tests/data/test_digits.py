import itertools

import numpy as np
import pytest

from potara_jax.data import digits
from tests.helpers_federated import assert_equal

CLIENTS, HELDOUT = 8, 16


def make(splits, heterogeneity="0.1", *, seed=0, size=None):
    return digits.federation(
        splits, heterogeneity, clients=CLIENTS, heldout=HELDOUT, seed=seed, size=size
    )


@pytest.fixture(scope="module")
def splits():
    return digits.deal(digits.load(0), 0)


@pytest.fixture(scope="module", params=["0.1", "tasks"])
def federation(request, splits):
    return make(splits, request.param)


def real(ragged, client):
    return np.asarray(ragged.index)[client, : int(ragged.count[client])]


def upstream(splits):
    return splits.parts["upstream"]


def class_shares(labels):
    return np.bincount(labels, minlength=digits.CLASSES) / len(labels)


def test_images_are_one_colour_between_zero_and_one(splits):
    assert splits.images.shape == (1797, 8, 8, 1)
    assert splits.images.dtype == np.float32
    assert splits.images.min() == 0
    assert splits.images.max() == 1


def test_parts_are_disjoint_and_complete(splits):
    dealt = [splits.parts[name] for name in ("train", "heldout", "test")]
    assert sorted(np.concatenate(dealt)) == list(splits.parts["clients"])
    everything = np.concatenate([upstream(splits), *dealt])
    assert sorted(everything) == list(range(len(splits.labels)))


def test_every_part_has_all_classes_alike(splits):
    for index in splits.parts.values():
        counts = np.bincount(splits.labels[index], minlength=digits.CLASSES)
        wanted = np.bincount(splits.labels) * len(index) / len(splits.labels)
        assert np.all(np.abs(counts - wanted) < 2)


def test_splits_are_functions_of_the_seeds(splits):
    assert_equal(digits.deal(digits.load(0), 0), splits)
    assert not np.array_equal(upstream(digits.load(1)), upstream(splits))


def test_dealing_the_clients_images_leaves_the_upstream_ones(splits):
    other = digits.deal(digits.load(0), 1)
    np.testing.assert_array_equal(upstream(other), upstream(splits))
    assert not np.array_equal(other.parts["train"], splits.parts["train"])


def test_clients_hold_no_upstream_image(splits, federation):
    image = lambda index: np.asarray(index) % len(splits.labels)
    for client in range(CLIENTS):
        parts = {
            "train": image(real(federation.train, client)),
            "heldout": image(real(federation.heldout, client)),
            "test": image(federation.test.index[client]),
        }
        for name, index in parts.items():
            assert np.all(np.isin(index, splits.parts[name]))


def test_train_images_are_dealt_to_one_client_each(splits, federation):
    held = [real(federation.train, client) for client in range(CLIENTS)]
    images = np.concatenate(held) % len(splits.labels)
    assert sorted(images) == list(splits.parts["train"])


def test_heldout_and_test_are_disjoint_from_all_training_images(federation):
    size = len(federation.pool.labels) // len(digits.TRANSFORMS)
    image = lambda index: set((np.asarray(index) % size).ravel().tolist())
    train, heldout = (
        set().union(*(image(real(ragged, client)) for client in range(CLIENTS)))
        for ragged in (federation.train, federation.heldout)
    )
    test = image(federation.test.index)
    for left, right in itertools.combinations((train, heldout, test), 2):
        assert not left & right


def test_upstream_images_are_turned_and_never_upright(splits):
    batch, index = digits.upstream(splits), upstream(splits)
    assert len(batch.labels) == 3 * len(index)
    once, twice, thrice = np.split(np.asarray(batch.inputs), 3)
    for image, left, half, right in zip(index, once, twice, thrice, strict=True):
        upright = splits.images[image]
        np.testing.assert_array_equal(left, upright.swapaxes(0, 1)[::-1])
        np.testing.assert_array_equal(half, upright[::-1, ::-1])
        np.testing.assert_array_equal(right, upright.swapaxes(0, 1)[:, ::-1])
    for labels in np.split(np.asarray(batch.labels), 3):
        np.testing.assert_array_equal(labels, splits.labels[index])
    seen = {image.tobytes() for image in np.asarray(batch.inputs)}
    assert not seen & {image.tobytes() for image in splits.images}


def test_proportions_are_those_of_the_training_images(federation):
    labels = np.asarray(federation.pool.labels)
    for client, share in enumerate(federation.proportions):
        own = class_shares(labels[real(federation.train, client)])
        np.testing.assert_allclose(share, own, atol=1e-6)


def test_test_weights_sum_to_one_and_match_the_proportions(federation):
    labels = np.asarray(federation.pool.labels)
    for client, share in enumerate(federation.proportions):
        index, weight = (np.asarray(part[client]) for part in federation.test)
        np.testing.assert_allclose(weight.sum(), 1, rtol=1e-5)
        given = np.bincount(labels[index], weight, minlength=digits.CLASSES)
        np.testing.assert_allclose(given, share, atol=1e-6)


def test_heldout_images_are_distinct_and_in_the_clients_proportions(federation):
    labels = np.asarray(federation.pool.labels)
    for client, share in enumerate(np.asarray(federation.proportions)):
        index = real(federation.heldout, client)
        assert len(np.unique(index)) == HELDOUT
        counts = HELDOUT * class_shares(labels[index])
        assert np.all(np.abs(counts - HELDOUT * share) < 1 + 1e-5)


def test_tasks_are_four_transformations_of_all_images(splits):
    pool = make(splits, "tasks").pool
    upright, mirrored, negative, transposed = np.split(np.asarray(pool.inputs), 4)
    np.testing.assert_array_equal(upright, splits.images)
    for image, flipped, inverse, turned in zip(
        splits.images[:, :, :, 0], mirrored, negative, transposed, strict=True
    ):
        np.testing.assert_array_equal(flipped[:, :, 0], np.fliplr(image))
        np.testing.assert_array_equal(inverse[:, :, 0], 1 - image)
        np.testing.assert_array_equal(turned[:, :, 0], image.T)
    for labels in np.split(np.asarray(pool.labels), 4):
        np.testing.assert_array_equal(labels, splits.labels)


def test_tasks_give_equal_groups_of_clients_all_of_their_images(splits):
    federation = make(splits, "tasks")
    np.testing.assert_array_equal(np.bincount(federation.task), [2, 2, 2, 2])
    for client, task in enumerate(federation.task):
        own = [real(federation.train, client), real(federation.heldout, client)]
        index = np.concatenate([*own, federation.test.index[client]])
        assert np.all(index // len(splits.labels) == task)


def test_tasks_leave_the_classes_alike_and_labels_do_not(splits):
    largest = lambda kind: float(make(splits, kind).proportions.max(1).mean())
    assert largest("tasks") < 0.25 < 0.5 < largest("0.1")


def test_without_tasks_every_client_has_upright_images(splits):
    federation = make(splits, "0.1")
    assert not np.any(federation.task)
    for indices in (federation.train, federation.heldout, federation.test):
        assert np.all(np.asarray(indices.index) < len(splits.labels))


@pytest.mark.parametrize("heterogeneity", ["0.1", "tasks"])
def test_federation_is_a_function_of_the_seed(splits, heterogeneity):
    once, again = (make(splits, heterogeneity, seed=7) for _ in range(2))
    assert_equal(once, again)
    other = make(splits, heterogeneity, seed=8)
    assert not np.array_equal(once.train.count, other.train.count)


def test_padding_to_another_size_changes_no_example(splits, federation):
    kind = "tasks" if np.any(federation.task) else "0.1"
    longest = federation.train.index.shape[1]
    padded = make(splits, kind, size=longest + 17)
    assert padded.train.index.shape[1] == longest + 17
    same = padded.train._replace(index=padded.train.index[:, :longest])
    assert_equal(padded._replace(train=same), federation)


def test_size_that_a_client_does_not_fit_is_refused(splits):
    with pytest.raises(ValueError, match=r"client \d has more than 20 examples"):
        make(splits, size=20)


def test_more_clients_than_the_images_allow_is_refused_with_both_numbers(splits):
    own = len(splits.parts["train"])
    with pytest.raises(ValueError, match=rf"400 clients.*3200.*there are {own}"):
        digits.federation(splits, "1.0", clients=400, heldout=4, seed=0)
