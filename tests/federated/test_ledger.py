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
from potara_jax.federated import rounds
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
