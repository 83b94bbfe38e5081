"""Pytrees as named arrays, and what is refused."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from potara_jax.adapters import peft
from potara_jax.federated.ledger import Part
from potara_jax.flower.messages import Npy, Refused, named, npy, num_bytes, packed, read
from tests.helpers import factors

ADAPTER = {"block/query": factors(0), "head": {"kernel": np.ones((3, 2), np.float32)}}
PAYLOAD = {
    "x": ADAPTER,
    "narrow": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
    "rank": np.int32(2),
    "begun": np.array(True),
    "more": (np.zeros((0, 2), np.float32), ()),
}
A = "base_model.model.block.query.lora_A.weight"


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def test_what_is_read_is_what_was_packed():
    again = read(packed(PAYLOAD), shapes(PAYLOAD))
    assert jax.tree.structure(again) == jax.tree.structure(PAYLOAD)
    jax.tree.map(np.testing.assert_array_equal, again, PAYLOAD)
    assert again["narrow"].dtype == jnp.bfloat16


def test_bfloat16_is_tagged_and_of_two_bytes():
    arrays = packed({"narrow": PAYLOAD["narrow"]})
    assert list(arrays) == ["narrow:bfloat16"]
    assert arrays["narrow:bfloat16"].dtype == "uint16" and num_bytes(arrays) == 12


def test_factors_have_the_names_and_layout_of_peft(tmp_path):
    adapter = {"block.query": ADAPTER["block/query"]}
    peft.write(tmp_path / "peft", adapter)
    written = load_file(tmp_path / "peft" / peft.WEIGHTS)
    mine = named({"block/query": ADAPTER["block/query"]})
    assert sorted(mine) == sorted(written)
    for name, array in mine.items():
        np.testing.assert_array_equal(array, written[name])


def test_of_a_part_only_the_rank_that_is_kept_travels():
    zero_beyond = jax.tree.map(np.array, factors(0, rank=3))
    zero_beyond["a"][:, 2:] = 0
    zero_beyond["b"][2:] = 0
    payload = Part({"q": zero_beyond}, np.int32(2), np.int32(3)), {"w": np.ones(2)}
    arrays = packed(payload)
    assert num_bytes(arrays) == 4 * (6 * 2 + 2 * 5) + 4 + 16
    again = read(arrays, shapes(payload))
    jax.tree.map(np.testing.assert_array_equal, again, payload)
    for kept in (0, 4, -1):
        with pytest.raises(Refused, match="it must be in 1 to 3"):
            read(arrays | {"0.kept": npy(np.int32(kept))}, shapes(payload))


def test_two_arrays_of_one_name_are_a_mistake():
    with pytest.raises(ValueError, match="rename a module"):
        named({"x/y": np.ones(1), "x": {"y": np.ones(1)}})


def pickled():
    stream = io.BytesIO()
    np.save(stream, np.array([print], object), allow_pickle=True)
    return Npy("float32", (2, 6), "numpy.ndarray", stream.getvalue())


def lying(shape):
    """An array whose bytes claim another shape."""
    good = npy(np.zeros((2, 6), np.float32))
    data = good.data.replace(b"(2, 6)", shape)
    return good._replace(data=data)


GOOD = named(ADAPTER)[A]
BAD = {
    "shape": (npy(GOOD[:1]), "float32[1, 6], not float32[2, 6]"),
    "dtype": (npy(GOOD.astype(np.float64)), "float64[2, 6], not float32[2, 6]"),
    "integers": (npy(GOOD.astype(np.int32)), "int32[2, 6], not float32[2, 6]"),
    "nan": (npy(GOOD * np.nan), "numbers that are not finite"),
    "infinite": (npy(np.full_like(GOOD, np.inf)), "numbers that are not finite"),
    "huge": (npy(np.full_like(GOOD, 1e30)), "has 1e+30: the limit is 1e+06"),
    "objects": (pickled(), "object[1], not float32[2, 6]"),
    "pickle": (npy(GOOD)._replace(stype="pickle"), "is a pickle, not a numpy.ndarray"),
    "no array": (npy(GOOD)._replace(data=b"cos\nsystem"), "is not a NumPy array"),
    "short": (npy(GOOD)._replace(data=npy(GOOD).data[:-1]), "is cut short or too long"),
    "lying": (lying(b"(9, 9)"), "float32[9, 9], not float32[2, 6]"),
    "code": (lying(b"exit()"), "is not a NumPy array"),
}


@pytest.mark.parametrize(("bad", "why"), BAD.values(), ids=BAD)
def test_what_is_not_expected_is_refused_and_named(bad, why):
    with np.errstate(all="ignore"), pytest.raises(Refused) as refused:
        read(packed(ADAPTER) | {A: bad}, shapes(ADAPTER), largest=1e6)
    assert str(refused.value).startswith(f"'{A}' ") and why in str(refused.value)


def test_missing_and_unknown_arrays_are_refused():
    arrays = packed(ADAPTER)
    with pytest.raises(Refused, match="'more' is not expected"):
        read(arrays | {"more": npy(GOOD)}, shapes(ADAPTER))
    del arrays[A]
    with pytest.raises(Refused, match="is missing"):
        read(arrays, shapes(ADAPTER))


def test_arrays_in_columns_are_read_too():
    columns = npy(np.asfortranarray(GOOD))
    again = read(packed(ADAPTER) | {A: columns}, shapes(ADAPTER))
    jax.tree.map(np.testing.assert_array_equal, again, ADAPTER)
