import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_batching import custom_vmap

from potara_jax.clients import axis
from potara_jax.clients.axis import Layout, over_clients
from tests.helpers_federated import assert_close

CLIENTS = 6
CHUNKS = [None, 1, 3, 4]


def one_client(base, state, examples, key):
    """Something of every kind: a shared product, pytrees in and out, a key, a scan."""
    hidden = jnp.tanh(examples["x"] @ base["w"]) + state[0]

    def step(carry, row):
        return carry * 0.5 + row, row.sum()

    last, sums = jax.lax.scan(step, state[0], hidden)
    noise = jax.random.normal(key, (2,))
    return {"last": last, "noise": noise}, (sums, hidden.shape[0] * state[1])


@pytest.fixture(scope="module")
def arguments():
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    state = normal(CLIENTS, 4), jnp.arange(CLIENTS)
    keys = jax.random.split(jax.random.key(0), CLIENTS)
    return {"w": normal(3, 4)}, state, {"x": normal(CLIENTS, 5, 3)}, keys


@pytest.fixture(scope="module")
def loop(arguments):
    base, *own = arguments
    pick = lambda index: jax.tree.map(lambda x: x[index], own)
    single = jax.jit(one_client)
    results = [single(base, *pick(index)) for index in range(CLIENTS)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_over_clients_equals_a_loop(arguments, loop, chunk):
    mapped = over_clients(one_client, in_axes=(None, 0, 0, 0), layout=Layout(chunk))
    assert_close(mapped(*arguments), loop)


def test_over_clients_equals_a_loop_under_jit(arguments, loop):
    mapped = over_clients(one_client, in_axes=[None, 0, 0, 0], layout=Layout(4))
    assert_close(jax.jit(mapped)(*arguments), loop)


@pytest.mark.parametrize("chunk", [None, 2, 4])
def test_every_argument_has_the_client_axis_by_default(chunk):
    mapped = over_clients(lambda x, y: x - 2 * y, layout=Layout(chunk))
    np.testing.assert_array_equal(
        mapped(jnp.arange(5), jnp.ones(5, int)), [-2, -1, 0, 1, 2]
    )


@pytest.mark.parametrize("order", [(None, 0, None, 0), (0, None, 0, None)])
@pytest.mark.parametrize("chunk", [None, 2])
def test_shared_arguments_may_stand_anywhere(order, chunk):
    values = [
        jnp.arange(3.0) + 10 * i if axis == 0 else i for i, axis in enumerate(order)
    ]
    mapped = over_clients(
        lambda *args: jnp.stack(args), in_axes=order, layout=Layout(chunk)
    )
    for client, row in enumerate(mapped(*values)):
        wanted = [
            v[client] if axis == 0 else v for v, axis in zip(values, order, strict=True)
        ]
        np.testing.assert_array_equal(row, wanted)


@pytest.mark.parametrize(
    ("chunk", "sizes"), [(None, [7]), (3, [3]), (4, [4]), (7, [7]), (8, [7])]
)
def test_shared_arguments_stay_unbatched_and_chunks_bound_the_clients(chunk, sizes):
    seen = []

    @custom_vmap
    def product(base, x):
        return x @ base

    @product.def_vmap
    def record(axis_size, in_batched, base, x):
        seen.append((axis_size, *in_batched))
        return x @ base, True

    base, x = jnp.full((2, 3), 2.0), jnp.ones((7, 4, 2))
    result = over_clients(product, in_axes=(None, 0), layout=Layout(chunk))(base, x)
    np.testing.assert_array_equal(result, np.full((7, 4, 3), 4.0))
    assert seen == [(size, False, True) for size in sizes]


def test_overhead_is_what_a_chunk_waits_for_its_longest():
    work = jnp.array([1.0, 4.0, 1.0, 2.0])
    assert axis.overhead(work, Layout(2)) == (2 * 1 + 2 * 4) / 8
    assert axis.overhead(work, Layout(1)) == 1
    assert axis.overhead(work, Layout(4)) == 2
    assert axis.overhead(jnp.ones(8), Layout(4)) == 1
