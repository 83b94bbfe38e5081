import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potara_jax.data.federation import Batch, pack, take
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
