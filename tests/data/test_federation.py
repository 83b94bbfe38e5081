import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potara_jax.data.federation import Batch, Federation, pack, take
from tests.helpers_federated import few_examples

index_groups = st.lists(
    st.lists(st.integers(0, 99), min_size=1, max_size=9).map(np.array),
    min_size=1,
    max_size=5,
)


@few_examples
@given(index_groups, st.integers(0, 4))
def test_pack_keeps_every_index_and_counts_it(groups, more):
    longest = max(map(len, groups))
    packed = pack(groups, size=longest + more)
    assert packed.index.shape == (len(groups), longest + more)
    assert packed.index.dtype == packed.count.dtype == jnp.int32
    for row, count, group in zip(*map(np.asarray, packed[:2]), groups, strict=True):
        np.testing.assert_array_equal(row[:count], group)


def test_pack_pads_to_the_longest_client():
    packed = pack([np.array([5, 6, 7]), np.array([8])])
    assert packed.index.shape == (2, 3)
    np.testing.assert_array_equal(packed.count, [3, 1])


def test_padding_points_into_the_pool():
    packed = pack([np.array([5, 6, 7]), np.array([8])], size=9)
    padded = np.arange(9) >= np.asarray(packed.count)[:, None]
    assert np.all(np.asarray(packed.index)[padded] == 0)


def test_client_without_examples_is_refused_by_its_number():
    with pytest.raises(ValueError, match="client 2 has no examples"):
        pack([np.arange(3), np.arange(2), np.arange(0), np.arange(1)])


def test_client_with_more_examples_than_the_size_is_refused_by_its_number():
    with pytest.raises(ValueError, match="client 1 has more than 3 examples"):
        pack([np.arange(3), np.arange(4)], size=3)


def test_take_has_the_shape_of_the_index():
    pool = Batch(jnp.arange(12.0).reshape(6, 2), jnp.arange(6))
    taken = take(pool, jnp.array([[5, 0], [1, 1], [2, 3]]))
    assert taken.inputs.shape == (3, 2, 2)
    np.testing.assert_array_equal(taken.labels, [[5, 0], [1, 1], [2, 3]])
    np.testing.assert_array_equal(taken.inputs[0, 0], [10, 11])


# --- Federations of arrays -----------------------------------------------------------

COUNTS = 9, 5, 14
KEY = jax.random.key(4)


def client_arrays(counts=COUNTS, classes=3):
    """Inputs whose values tell their client and their place, and labels of classes."""
    labels = np.random.default_rng(0).integers(0, classes, (len(counts), max(counts)))
    return [
        (100.0 * c + np.arange(n, dtype=np.float32)[:, None], labels[c, :n])
        for c, n in enumerate(counts)
    ]


def values_of(federation, examples, client):
    """The distinguishing values of a client's real examples."""
    count = int(examples.count[client])
    return np.asarray(federation.pool.inputs)[examples.index[client, :count], 0]


def examples_tested(federation, client):
    real = np.asarray(federation.test.weight[client]) > 0
    return np.asarray(federation.pool.inputs)[federation.test.index[client][real], 0]


@pytest.mark.parametrize(
    ("heldout", "test", "sizes"),
    [
        (1, 2, [(6, 1, 2), (2, 1, 2), (11, 1, 2)]),
        (0.2, 0.3, [(4, 2, 3), (2, 1, 2), (7, 3, 4)]),
        (0.01, 1, [(7, 1, 1), (3, 1, 1), (12, 1, 1)]),
    ],
)
def test_every_example_of_a_client_is_in_one_of_its_splits(heldout, test, sizes):
    made = Federation.of(client_arrays(), heldout=heldout, test=test, key=KEY)
    for client, size in enumerate(sizes):
        parts = (
            values_of(made, made.train, client),
            values_of(made, made.heldout, client),
            examples_tested(made, client),
        )
        assert tuple(map(len, parts)) == size
        expected = client_arrays()[client][0][:, 0]
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), expected)


def test_the_pool_keeps_inputs_and_labels_together_and_in_order():
    made = Federation.of(client_arrays(), heldout=1, test=1, key=KEY)
    inputs, labels = (np.concatenate(x) for x in zip(*client_arrays(), strict=True))
    np.testing.assert_array_equal(made.pool.inputs, inputs)
    np.testing.assert_array_equal(made.pool.labels, labels)


def test_a_clients_test_examples_have_equal_weights():
    made = Federation.of(client_arrays(), heldout=1, test=0.3, key=KEY)
    np.testing.assert_allclose(made.test.weight.sum(1), 1, rtol=1e-6)
    for weights in np.asarray(made.test.weight):
        assert len(set(weights[weights > 0].tolist())) == 1


def test_proportions_are_those_of_the_training_examples():
    made = Federation.of(client_arrays(), heldout=2, test=1, key=KEY)
    assert made.proportions.shape == (3, 3)
    for client, row in enumerate(np.asarray(made.proportions)):
        index = made.train.index[client, : int(made.train.count[client])]
        labels = np.asarray(made.pool.labels)[index]
        np.testing.assert_allclose(row, np.bincount(labels, minlength=3) / len(labels))
    np.testing.assert_array_equal(made.task, [0, 1, 2])


def test_a_split_depends_on_the_key_and_not_on_other_clients():
    split = lambda clients, key: Federation.of(clients, heldout=2, test=2, key=key)
    once, again = split(client_arrays(), KEY), split(client_arrays(), KEY)
    fewer = split(client_arrays()[:2], KEY)
    other = split(client_arrays(), jax.random.key(5))
    first = values_of(once, once.train, 0)
    np.testing.assert_array_equal(first, values_of(again, again.train, 0))
    np.testing.assert_array_equal(first, values_of(fewer, fewer.train, 0))
    assert set(first) != set(values_of(other, other.train, 0))
    both = np.sort(values_of(once, once.heldout, 0)) % 100
    assert set(both) != set(np.sort(values_of(once, once.heldout, 2)) % 100)


def test_pytrees_vectors_and_no_labels_can_be_examples():
    rng = np.random.default_rng(0)
    client = lambda n: (
        {"query": rng.normal(size=(n, 3)), "item": jnp.ones((n, 2), jnp.bfloat16)},
        rng.normal(size=(n, 4)).astype(np.float32),
    )
    made = Federation.of([client(4), client(6)], heldout=1, test=1, key=KEY)
    batch = take(made.pool, made.train.index[0])
    assert batch.inputs["query"].shape == (4, 3)
    assert batch.inputs["item"].dtype == jnp.bfloat16
    assert made.pool.labels.shape == (10, 4)
    np.testing.assert_array_equal(made.proportions, [[1], [1]])
    unlabelled = [(np.ones((4, 2)), None)] * 2
    made = Federation.of(unlabelled, heldout=1, test=1, key=KEY)
    assert made.pool.labels is None


def test_splits_can_be_given():
    (a, b, c), others = client_arrays((3, 1, 2)), client_arrays((2, 4, 1))
    made = Federation.of_splits([(a, b, c), others])
    np.testing.assert_array_equal(values_of(made, made.train, 0), a[0][:, 0])
    np.testing.assert_array_equal(values_of(made, made.heldout, 0), b[0][:, 0])
    np.testing.assert_array_equal(examples_tested(made, 0), c[0][:, 0])
    np.testing.assert_array_equal(values_of(made, made.heldout, 1), others[1][0][:, 0])
    with pytest.raises(ValueError, match="client 1's held-out has no examples"):
        Federation.of_splits([(a, b, c), (a, client_arrays((0,))[0], c)])


def spoiled(client, *examples):
    clients = client_arrays()
    clients[client] = examples
    return clients


X, Y = np.ones((6, 1), np.float32), np.zeros(6, int)


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([], "no examples"),
        (spoiled(1, X), r"client 1 must be a pair"),
        (spoiled(1, X, Y[:5]), r"client 1 needs arrays of one length, not 5 and 6"),
        (spoiled(2, X[:0], Y[:0]), r"client 2 has no examples"),
        (spoiled(2, X[:2], Y[:2]), r"client 2 has 2 examples.*1 held out.*hold out"),
        (
            spoiled(1, np.ones((6, 2), np.float32), Y),
            r"client 1 has inputs float32\[2\], but client 0 has float32\[1\]",
        ),
        (
            spoiled(2, X, X[:, 0]),
            r"client 2 has labels float32\[\], but client 0 has int32\[\]",
        ),
        (spoiled(1, X, [0] * 6), r"client 1 has int64\[\].*turn lists into arrays"),
        (spoiled(1, X, np.array(["a"] * 6)), r"client 1 has <U1\[6\]"),
        (
            spoiled(1, np.where(np.arange(6) == 4, np.nan, X.T).T, Y),
            r"client 1 has inputs of nan in its example 4: numbers must be finite",
        ),
        (spoiled(1, X, Y + np.inf), r"client 1 has labels of inf in its example 0"),
        (
            spoiled(2, X.astype(float) * 1e39, Y),
            r"client 2 has inputs of .*e\+39 .* fit float32",
        ),
        (
            spoiled(0, X, Y + 2**40),
            r"client 0 has labels of 1099511627776 in its example 0: .* fit int32",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_the_clients_number(clients, message):
    with pytest.raises(ValueError, match=message):
        Federation.of(clients, heldout=1, test=1, key=KEY)


@pytest.mark.parametrize("clients", [None, {"a": (1, 2)}, np.ones((2, 2))])
def test_clients_are_a_list(clients):
    with pytest.raises(ValueError, match=r"clients is a .*: it must be a list"):
        Federation.of(clients, heldout=1, test=1, key=KEY)
    with pytest.raises(ValueError, match=r"clients is a .*: it must be a list"):
        Federation.of_splits(clients)


def test_given_splits_are_three_pairs():
    a, b, c = client_arrays((3, 1, 2))
    with pytest.raises(ValueError, match="client 1 must have three pairs"):
        Federation.of_splits([(a, b, c), (a, b)])


def test_a_key_is_one_of_jax():
    with pytest.raises(ValueError, match=r"key is 0: it must be .*jax.random.key\(0\)"):
        Federation.of(client_arrays(), heldout=1, test=1, key=0)


@pytest.mark.parametrize("top", [2**31 - 1, 1000])
def test_large_integers_are_no_classes(top):
    clients = [(X, np.where(np.arange(6) == 2, top, Y)), (X, Y)]
    made = Federation.of(clients, heldout=1, test=1, key=KEY)
    np.testing.assert_array_equal(made.proportions, [[1], [1]])
    assert int(made.pool.labels.max()) == top


def test_every_example_of_the_pool_is_one_clients():
    made = Federation.of(client_arrays(), heldout=2, test=1, key=KEY)
    ends = np.cumsum(COUNTS)[:-1]
    for client, group in zip(
        made.examples(), np.split(np.arange(28), ends), strict=True
    ):
        np.testing.assert_array_equal(np.sort(client), group)


@pytest.mark.parametrize("amount", [0, -1, 1.0, 1.5, -0.1, np.nan, True, "2", None])
@pytest.mark.parametrize("name", ["heldout", "test"])
def test_an_amount_is_a_number_or_a_share(name, amount):
    amounts = {"heldout": 1, "test": 1} | {name: amount}
    with pytest.raises(ValueError, match=f"{name} is {amount!r}: it must be"):
        Federation.of(client_arrays(), key=KEY, **amounts)
