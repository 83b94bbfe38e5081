import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potara_jax.data import partition
from tests.helpers_federated import few_examples

BALANCED = np.repeat(np.arange(4), 25)
seeds = st.integers(0, 2**32 - 1)
label_arrays = st.lists(st.integers(0, 4), min_size=60, max_size=150).map(np.array)


def generator(seed=0):
    return np.random.default_rng(seed)


def simplex(size):
    weights = st.lists(st.integers(0, 20), min_size=size, max_size=size)
    return weights.filter(any).map(lambda w: np.array(w) / sum(w))


@few_examples
@given(label_arrays, seeds, st.integers(1, 5), st.floats(0.3, 100), st.integers(1, 4))
def test_dirichlet_deals_every_example_once(labels, seed, clients, alpha, minimum):
    dealt = partition.dirichlet(
        generator(seed),
        labels,
        clients=clients,
        concentration=alpha,
        minimum=minimum,
    )
    assert len(dealt) == clients
    assert sorted(np.concatenate(dealt)) == list(range(len(labels)))
    assert min(len(group) for group in dealt) >= minimum


def test_dirichlet_honours_a_minimum_that_most_draws_miss():
    loose, tight = (
        partition.dirichlet(
            generator(3), BALANCED, clients=4, concentration=1.0, minimum=minimum
        )
        for minimum in (0, 18)
    )
    assert min(map(len, loose)) < 18 <= min(map(len, tight))


@few_examples
@given(seeds)
def test_dirichlet_is_a_function_of_the_seed(seed):
    settings = {"clients": 3, "concentration": 0.5}
    once = partition.dirichlet(generator(seed), BALANCED, **settings)
    again = partition.dirichlet(generator(seed), BALANCED, **settings)
    other = partition.dirichlet(generator(seed + 1), BALANCED, **settings)
    for left, right in zip(once, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert [list(group) for group in once] != [list(group) for group in other]


def test_small_concentration_gives_a_client_fewer_classes_than_a_large_one():
    labels = np.repeat(np.arange(10), 80)

    def classes(concentration):
        groups = partition.dirichlet(
            generator(), labels, clients=8, concentration=concentration
        )
        return np.mean([len(np.unique(labels[group])) for group in groups])

    few, some, many = map(classes, (0.02, 0.5, 100.0))
    assert few < 4
    assert few < some < many
    assert many == 10


def test_large_concentration_gives_every_client_the_common_proportions():
    groups = partition.dirichlet(
        generator(), np.repeat(np.arange(4), 500), clients=5, concentration=1e6
    )
    shares = partition.proportions(np.repeat(np.arange(4), 500), groups, 4)
    np.testing.assert_allclose(shares, 0.25, atol=0.01)


def test_too_many_clients_for_the_examples_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"21 clients.*105 training.*there are 100"):
        partition.dirichlet(
            generator(), BALANCED, clients=21, concentration=1.0, minimum=5
        )


def test_an_unreachable_minimum_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"Dirichlet 0.001 .*20 clients 5 examples"):
        partition.dirichlet(
            generator(), BALANCED, clients=20, concentration=0.001, minimum=5
        )


def test_proportions_by_hand():
    labels = np.array([0, 0, 1, 2, 2, 2])
    shares = partition.proportions(labels, [np.array([0, 1, 2]), np.arange(6)], 4)
    np.testing.assert_allclose(shares, [[2 / 3, 1 / 3, 0, 0], [2 / 6, 1 / 6, 3 / 6, 0]])


@pytest.mark.parametrize(
    ("proportion", "number", "counts"),
    [
        ([0.5, 0.3, 0.2, 0.0], 7, [4, 2, 1, 0]),  # 3.5, 2.1, 1.4
        ([0.26, 0.26, 0.24, 0.24], 10, [3, 3, 2, 2]),  # 2.6, 2.6, 2.4, 2.4
        ([0.0, 1.0, 0.0, 0.0], 5, [0, 5, 0, 0]),
        ([0.45, 0.15, 0.2, 0.2], 3, [1, 0, 1, 1]),  # 1.35, 0.45, 0.6, 0.6
    ],
)
def test_draw_like_rounds_by_largest_remainder(proportion, number, counts):
    index = partition.draw_like(generator(), BALANCED, np.array(proportion), number)
    np.testing.assert_array_equal(np.bincount(BALANCED[index], minlength=4), counts)


@few_examples
@given(simplex(4), st.integers(1, 25), seeds)
def test_draw_like_draws_distinct_examples_in_proportion(proportion, number, seed):
    index = partition.draw_like(generator(seed), BALANCED, proportion, number)
    counts = np.bincount(BALANCED[index], minlength=4)
    assert len(index) == len(np.unique(index)) == number
    assert np.all(np.abs(counts - proportion * number) < 1 + 1e-9)
    assert np.all(counts[proportion == 0] == 0)


def test_draw_like_takes_all_of_a_class_that_is_too_small():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    index = partition.draw_like(generator(), labels, np.array([0.75, 0.25]), 8)
    assert sorted(index[labels[index] == 0]) == [0, 1, 2]
    assert len(np.unique(index)) == len(index) == 3 + 2


def test_example_weights_by_hand():
    labels = np.array([0, 0, 1, 2, 2, 2, 2])
    weights = partition.example_weights(labels, np.array([0.5, 0.3, 0.2]))
    np.testing.assert_allclose(weights, [0.25, 0.25, 0.3, *[0.05] * 4])


@few_examples
@given(label_arrays, simplex(5))
def test_example_weights_give_the_class_proportions(labels, proportion):
    labels = np.concatenate([np.arange(5), labels])
    weights = partition.example_weights(labels, proportion)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    given_to = np.bincount(labels, weights, minlength=5)
    np.testing.assert_allclose(given_to, proportion, atol=1e-12)


def test_example_weights_share_out_what_a_missing_class_leaves():
    weights = partition.example_weights(
        np.array([0, 0, 1]), np.array([0.25, 0.25, 0.5])
    )
    np.testing.assert_allclose(weights, [0.25, 0.25, 0.5])


@few_examples
@given(label_arrays, seeds)
def test_split_is_disjoint_complete_and_class_balanced(labels, seed):
    shares = {"one": 0.2, "two": 0.5, "three": 0.3}
    parts = partition.split(generator(seed), labels, shares)
    assert list(parts) == list(shares)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(labels)))
    for label, total in enumerate(np.bincount(labels)):
        counts = [np.sum(labels[part] == label) for part in parts.values()]
        wanted = np.array(list(shares.values())) * total
        assert np.all(np.abs(counts - wanted) <= 1 + 1e-9)


def test_split_takes_shares_of_any_scale():
    once = partition.split(generator(), BALANCED, {"one": 0.2, "two": 0.8})
    again = partition.split(generator(), BALANCED, {"one": 1, "two": 4})
    assert len(once["one"]) == 20
    np.testing.assert_array_equal(once["one"], again["one"])


def test_drawn_clients_may_share_examples_but_hold_none_twice():
    labels = np.repeat(np.arange(4), 30)
    rng = np.random.default_rng(0)
    groups = partition.draw(
        rng, labels, clients=300, concentration=0.5, examples=20, minimum=3
    )
    assert len(groups) == 300
    assert all(len(set(group)) == len(group) >= 3 for group in groups)
    assert np.bincount(np.concatenate(groups), minlength=120).min() > 1
    shares = partition.proportions(labels, groups, 4)
    np.testing.assert_allclose(shares.mean(0), 0.25, atol=0.05)
    assert 15 < np.median([len(group) for group in groups]) <= 21


def test_a_small_class_gives_all_its_examples():
    labels = np.array([0] * 50 + [1] * 2)
    rng = np.random.default_rng(1)
    for group in partition.draw(
        rng, labels, clients=20, concentration=0.1, examples=30
    ):
        assert (labels[group] == 1).sum() <= 2
        assert len(group) >= 1
