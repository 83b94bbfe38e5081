"""Trees of arrays in files."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.evaluation.metrics import Scores
from potara_jax.runs import trees

Foreign = namedtuple("Foreign", "x")


@pytest.mark.parametrize(
    "tree",
    [
        jnp.arange(3.0),
        Scores(jnp.array([0.5, jnp.nan]), jnp.ones(2)),
        {"a/b": (jnp.ones((2, 3), bool), None), "c": {"d": jnp.int32(4)}},
        (),
    ],
)
def test_a_tree_is_read_as_it_was_written(tree):
    again = trees.from_bytes(trees.to_bytes(tree))
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for kept, given in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        assert kept.dtype == given.dtype
        np.testing.assert_array_equal(kept, given)


@pytest.mark.parametrize(
    "tree",
    [{"a": 1.5}, {1: jnp.ones(2)}, Foreign(jnp.ones(2)), jnp.ones(2, jnp.bfloat16)],
)
def test_other_things_are_refused(tree):
    with pytest.raises(TypeError, match="cannot be kept"):
        trees.to_bytes(tree)


def test_only_types_of_this_package_are_made():
    content = trees.to_bytes(Scores(jnp.ones(1), jnp.ones(1)))
    other = content.replace(
        "potara_jax.evaluation.metrics".encode("utf-32-le"),
        "other_name.evaluation.metrics".encode("utf-32-le"),
    )
    assert other != content
    with pytest.raises(Exception, match=r"CRC|not of this package"):
        trees.from_bytes(other)
