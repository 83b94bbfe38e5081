import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potara_jax import federated
from potara_jax.adapters import lora
from potara_jax.clients.task import of_classes
from potara_jax.data.federation import Batch, pack
from potara_jax.federated import factors, ledger, rounds, wire
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.interface import Shared
from potara_jax.federated.ledger import payload_bytes
from potara_jax.models.vit import ViT, ViTConfig
from tests.helpers_federated import few_examples

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "float16": 2, "int32": 4, "bool": 1}
shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)
arrays = st.tuples(shapes, st.sampled_from(sorted(BYTES)))


@pytest.mark.parametrize(("dtype", "size"), BYTES.items())
def test_bytes_of_an_array(dtype, size):
    assert payload_bytes(jnp.zeros((3, 5), dtype)) == 15 * size
    assert payload_bytes(jnp.zeros((), dtype)) == size


def test_bytes_of_a_nested_payload():
    payload = {
        "factors": {"a": jnp.zeros((4, 2)), "b": jnp.zeros((2, 3), jnp.bfloat16)},
        "signs": [jnp.zeros(7, jnp.int8), (np.zeros((2, 2), np.float64),)],
    }
    assert payload_bytes(payload) == 4 * 8 + 2 * 6 + 7 + 8 * 4


def test_nothing_has_no_bytes():
    assert payload_bytes(()) == payload_bytes({"none": None}) == 0


@few_examples
@given(st.lists(arrays, max_size=5))
def test_bytes_are_known_from_shapes_and_dtypes_alone(drawn):
    payload = [jax.ShapeDtypeStruct(shape, jnp.dtype(kind)) for shape, kind in drawn]
    wanted = sum(int(np.prod(shape)) * BYTES[kind] for shape, kind in drawn)
    assert payload_bytes(payload) == wanted


def test_bytes_of_a_fedit_round_equal_the_closed_formula():
    rank, width, classes, patch, clients = 2, 8, 3, 2, 3
    model = ViT(ViTConfig(patch, width, depth=1, heads=2, mlp_ratio=2, classes=classes))
    images = jnp.ones((6, 4, 4, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    base = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    sites = lora.find_sites(model, images, targets=["query", "out", "up", "embed"])
    head = lora.trained_modules(base, ["head"])
    adapter = lora.init(jax.random.key(1), sites, rank=rank) | head
    task = of_classes(lora.bind(model, scale=2.0))
    idle = lambda objective, params, pool, examples, key: (params, jnp.zeros(1))
    algorithm = fedit(task, idle)
    _, report = rounds.make_round(algorithm)(
        Shared(base, Batch(images, jnp.zeros(6, jnp.int32))),
        federated.start(
            algorithm, federated.stack(adapter, clients=clients), jax.random.key(0)
        ),
        pack(np.arange(6).reshape(clients, 2)),
        jax.random.key(2),
        0,
    )
    sides = [width + width, width + width, width + 2 * width, patch**2 + width]
    numbers = sum(rank * side for side in sides) + width * classes + classes
    np.testing.assert_array_equal(report.bytes_up, [4 * numbers] * clients)
    np.testing.assert_array_equal(report.bytes_down, [4 * numbers] * clients)


# --- What all clients are told, at the sizes of real models ---------------------------

VIT_B = {"query": (768, 768), "value": (768, 768)}
LLAMA_3B = {"query": (3072, 3072), "value": (3072, 1024)}


def announced(modules, *, rank, clients):
    """Bytes of what FLoRA tells every client, over those of one client's factors."""
    wide = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    stacked = {
        name: {"a": wide(inputs, clients * rank), "b": wide(clients * rank, outputs)}
        for name, (inputs, outputs) in modules.items()
    }
    kept = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = jax.eval_shape(factors.cheapest, stacked, kept)
    payload = {
        name: ledger.Either(
            ledger.Part(each.first.value, clients * rank, clients * rank),
            ledger.Part(each.second.value, 1, 1),
        )
        for name, each in shapes.items()
    }
    one = sum(4 * rank * (inputs + outputs) for inputs, outputs in modules.values())
    return int(ledger.payload_bytes(payload)) / one


def test_stacked_factors_are_told_until_the_dense_delta_is_smaller():
    """The factors of ten clients are ten times one's; from 48 on ViT-B's are dense."""
    assert announced(VIT_B, rank=8, clients=10) == 10
    assert announced(VIT_B, rank=8, clients=47) == 47
    assert announced(VIT_B, rank=8, clients=100) == 48
    assert announced(VIT_B, rank=16, clients=100) == 24
    assert announced(LLAMA_3B, rank=8, clients=90) == 90
    query, value = 3072 + 3072, 3072 + 1024
    expected = (192 * query + 96 * value) / (query + value)
    assert announced(LLAMA_3B, rank=8, clients=200) == pytest.approx(expected)


@pytest.mark.parametrize(("kept", "expected"), [(0, 0), (1, 12), (3, 36)])
def test_a_part_counts_whole_bytes(kept, expected):
    part = ledger.Part(jnp.zeros((3, 3)), jnp.int32(kept), jnp.int32(3))
    assert ledger.payload_bytes(part) == expected


def test_large_parts_are_counted_to_the_byte():
    """More bytes than float32 can count."""
    value = jax.ShapeDtypeStruct((2**24 + 1, 7), jnp.float32)
    part = ledger.Part(value, jnp.int32(5), jnp.int32(7))
    assert int(ledger.payload_bytes(part)) == 4 * 5 * (2**24 + 1)


def test_top_k_sends_no_more_of_a_part_than_its_share():
    """Half of rank 1 of 2: half of its entries, not half of the padded array's."""
    value = {"x": jnp.zeros((6, 2)).at[:, 0].set(jnp.arange(1.0, 7))}
    part = ledger.Part(value, jnp.int32(1), jnp.int32(2))
    how = wire.top_k(0.5)
    message = how.encode(part, jax.random.key(0))
    arrived = how.decode(message, part).value["x"]
    np.testing.assert_array_equal(arrived[:, 0], [0, 0, 0, 4, 5, 6])
    assert ledger.payload_bytes(message) == 3 * 8
