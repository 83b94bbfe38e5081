import itertools

import numpy as np
import pytest

from potara_jax.data import digits
from potara_jax.data.transforms import TRANSFORMS
from tests.helpers_federated import assert_equal

CLIENTS, HELDOUT = 8, 16


def make(images, heterogeneity="0.1", *, seed=0, size=None):
    return digits.federation(
        images, heterogeneity, seed, clients=CLIENTS, heldout=HELDOUT, size=size
    )


@pytest.fixture(scope="module")
def images():
    return digits.load(0)


@pytest.fixture(scope="module")
def parts(images):
    return digits.split(images, 0)


@pytest.fixture(scope="module", params=["0.1", "tasks"])
def federation(request, images):
    return make(images, request.param)


def real(ragged, client):
    return np.asarray(ragged.index)[client, : int(ragged.count[client])]


def class_shares(labels):
    return np.bincount(labels, minlength=digits.CLASSES) / len(labels)


def test_images_are_one_colour_between_zero_and_one(images):
    assert images.images.shape == (1797, 8, 8, 1)
    assert images.images.dtype == np.float32
    assert images.images.min() == 0
    assert images.images.max() == 1


def test_parts_are_disjoint_and_complete(images, parts):
    assert sorted(np.concatenate(parts)) == list(images.clients)
    everything = np.concatenate([images.upstream, *parts])
    assert sorted(everything) == list(range(len(images.labels)))


def test_every_part_has_all_classes_equally_often(images, parts):
    for index in (images.upstream, *parts):
        counts = np.bincount(images.labels[index], minlength=digits.CLASSES)
        expected = np.bincount(images.labels) * len(index) / len(images.labels)
        assert np.all(np.abs(counts - expected) < 2)


def test_splits_are_functions_of_the_seeds(images, parts):
    assert_equal(digits.load(0), images)
    assert_equal(digits.split(images, 0), parts)
    assert not np.array_equal(digits.load(1).upstream, images.upstream)
    assert not np.array_equal(digits.split(images, 1).train, parts.train)


def test_clients_have_only_images_of_their_parts(images, parts, federation):
    image = lambda index: np.asarray(index) % len(images.labels)
    for client in range(CLIENTS):
        assert np.isin(image(real(federation.train, client)), parts.train).all()
        assert np.isin(image(real(federation.heldout, client)), parts.heldout).all()
        assert np.isin(image(federation.test.index[client]), parts.test).all()


def test_train_images_are_dealt_to_one_client_each(images, parts, federation):
    places = [real(federation.train, client) for client in range(CLIENTS)]
    assert sorted(np.concatenate(places) % len(images.labels)) == list(parts.train)


def test_heldout_and_test_are_disjoint_from_all_training_images(federation):
    size = len(federation.pool.labels) // len(TRANSFORMS)
    image = lambda index: set((np.asarray(index) % size).ravel().tolist())
    train, heldout = (
        set().union(*(image(real(ragged, client)) for client in range(CLIENTS)))
        for ragged in (federation.train, federation.heldout)
    )
    test = image(federation.test.index)
    for left, right in itertools.combinations((train, heldout, test), 2):
        assert not left & right


def test_upstream_images_are_rotated_and_never_upright(images):
    batch, index = digits.upstream_images(images), images.upstream
    assert len(batch.labels) == 3 * len(index)
    once, twice, thrice = np.split(np.asarray(batch.inputs), 3)
    for image, left, half, right in zip(index, once, twice, thrice, strict=True):
        upright = images.images[image]
        np.testing.assert_array_equal(left, upright.swapaxes(0, 1)[::-1])
        np.testing.assert_array_equal(half, upright[::-1, ::-1])
        np.testing.assert_array_equal(right, upright.swapaxes(0, 1)[:, ::-1])
    for labels in np.split(np.asarray(batch.labels), 3):
        np.testing.assert_array_equal(labels, images.labels[index])
    seen = {image.tobytes() for image in np.asarray(batch.inputs)}
    assert not seen & {image.tobytes() for image in images.images}


def test_proportions_are_those_of_the_training_images(federation):
    labels = np.asarray(federation.pool.labels)
    for client, share in enumerate(federation.proportions):
        expected = class_shares(labels[real(federation.train, client)])
        np.testing.assert_allclose(share, expected, atol=1e-6)


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


def test_tasks_are_four_transformations_of_all_images(images):
    pool = make(images, "tasks").pool
    upright, mirrored, negative, transposed = np.split(np.asarray(pool.inputs), 4)
    np.testing.assert_array_equal(upright, images.images)
    for image, flipped, inverse, turned in zip(
        images.images[:, :, :, 0], mirrored, negative, transposed, strict=True
    ):
        np.testing.assert_array_equal(flipped[:, :, 0], np.fliplr(image))
        np.testing.assert_array_equal(inverse[:, :, 0], 1 - image)
        np.testing.assert_array_equal(turned[:, :, 0], image.T)
    for labels in np.split(np.asarray(pool.labels), 4):
        np.testing.assert_array_equal(labels, images.labels)


def test_tasks_give_equal_groups_of_clients_all_of_their_images(images):
    federation = make(images, "tasks")
    np.testing.assert_array_equal(np.bincount(federation.task), [2, 2, 2, 2])
    for client, task in enumerate(federation.task):
        index = [real(federation.train, client), real(federation.heldout, client)]
        index = np.concatenate([*index, federation.test.index[client]])
        assert np.all(index // len(images.labels) == task)


def test_tasks_leave_the_classes_balanced_and_labels_do_not(images):
    largest = lambda kind: float(make(images, kind).proportions.max(1).mean())
    assert largest("tasks") < 0.25 < 0.5 < largest("0.1")


def test_without_tasks_every_client_has_upright_images(images):
    federation = make(images, "0.1")
    assert not np.any(federation.task)
    for indices in (federation.train, federation.heldout, federation.test):
        assert np.all(np.asarray(indices.index) < len(images.labels))


@pytest.mark.parametrize("heterogeneity", ["0.1", "tasks"])
def test_federation_is_a_function_of_the_seed(images, heterogeneity):
    once, again = (make(images, heterogeneity, seed=7) for _ in range(2))
    assert_equal(once, again)
    other = make(images, heterogeneity, seed=8)
    assert not np.array_equal(once.train.count, other.train.count)


def test_padding_to_another_size_changes_no_example(images, federation):
    kind = "tasks" if np.any(federation.task) else "0.1"
    longest = federation.train.index.shape[1]
    padded = make(images, kind, size=longest + 17)
    assert padded.train.index.shape[1] == longest + 17
    same = padded.train._replace(index=padded.train.index[:, :longest])
    assert_equal(padded._replace(train=same), federation)


def test_a_size_smaller_than_a_client_is_refused(images):
    with pytest.raises(ValueError, match=r"client \d has more than 20 examples"):
        make(images, size=20)


def test_more_clients_than_the_images_allow_is_refused_with_both_numbers(images, parts):
    known = len(parts.train)
    with pytest.raises(ValueError, match=rf"400 clients.*3200.*there are {known}"):
        digits.federation(images, "1.0", 0, clients=400, heldout=4)


def test_clients_that_share_images_can_be_many(images):
    shared = digits.federation(images, "0.1", 0, clients=300, heldout=4, examples=20)
    assert len(shared.train.count) == 300
    assert shared.train.count.sum() > len(images.labels)
    for client in range(3):
        index = real(shared.train, client)
        assert len(set(index.tolist())) == len(index)
