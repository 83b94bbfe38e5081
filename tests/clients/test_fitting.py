import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.clients import fitting
from potara_jax.clients.axis import AUTO, Layout, over_clients
from potara_jax.clients.fitting import jit_over_clients, temporaries
from potara_jax.federated import rounds
from tests.helpers_federated import ALGORITHMS, assert_close, problem, run, start

CLIENTS, WIDE = 40, 4096
X = jnp.asarray(np.random.default_rng(0).normal(size=(CLIENTS, 8)), jnp.float32)


def one_client(x):
    """Something that takes a megabyte a client."""
    wide = jnp.sin(jnp.outer(x, jnp.arange(WIDE)))
    return jax.lax.fori_loop(0, 3, lambda _, y: jnp.cumsum(y, 0) / 8, wide).sum()


def program(layout):
    seen = []

    def make(layout):
        seen.append(layout.chunk)
        return over_clients(one_client, layout=layout)

    return jit_over_clients(make, layout, len), seen


def test_a_chunk_that_is_given_is_taken():
    found, seen = program(Layout(3))
    found(X)
    assert seen == [3]


@pytest.mark.parametrize(("backend", "chunk"), [("cpu", 16), ("gpu", CLIENTS)])
def test_where_there_is_room_all_are_computed_at_once(monkeypatch, backend, chunk):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    found, seen = program(Layout(AUTO))
    np.testing.assert_allclose(found(X), jax.vmap(one_client)(X), rtol=1e-4, atol=1e-3)
    found(X)
    assert seen == [chunk]


@pytest.mark.parametrize("room", [2_000_000, 700_000, 1])
def test_what_is_found_fits_the_room(monkeypatch, room):
    monkeypatch.setattr(fitting.memory, "free_on_device", lambda: room)
    found, seen = program(Layout(AUTO))
    found(X)
    needed = lambda chunk: temporaries(program(Layout(chunk))[0], X)
    assert needed(seen[-1]) <= room or seen[-1] == 1
    assert all(needed(chunk) > room for chunk in seen[:-1])
    assert seen == sorted(seen, reverse=True)
    assert 1 < len(seen) < 8


@pytest.mark.parametrize("room", [2**40, 4_000_000])
def test_many_clients_are_tried_after_few(monkeypatch, room):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(fitting.memory, "free_on_device", lambda: room)
    monkeypatch.setattr(fitting, "_FIRST", 8)
    found, seen = program(Layout(AUTO))
    found(X)
    assert len(seen) == 2
    assert seen[0] == 8 < seen[1]
    assert seen[1] == CLIENTS or room / 2 < temporaries(program(Layout(seen[1]))[0], X)


def test_memory_grows_with_the_chunk_and_not_with_the_clients():
    needed = lambda clients: temporaries(
        program(Layout(8))[0], jax.ShapeDtypeStruct((clients, 8), jnp.float32)
    )
    assert needed(4096) <= 1.1 * needed(256)


def test_there_is_room_on_this_machine():
    assert fitting.memory.free_on_device() > 2**20


def test_a_round_is_the_same_in_a_chunk_that_fits(monkeypatch):
    monkeypatch.setattr(fitting.memory, "free_on_device", lambda: 1)
    algorithm = ALGORITHMS["FedIT, whole batches"]
    given = problem((4, 2, 1, 4, 3))
    whole, _ = run(algorithm, given, number=2)
    step = rounds.make_round(algorithm, layout=Layout(AUTO))
    progress = start(algorithm, given)
    for number in range(2):
        args = given.shared, progress, given.examples, jax.random.key(0)
        progress, _ = step(*args, number)
    assert_close(progress, whole)


class OutOfMemory(jax.errors.JaxRuntimeError):
    pass


def exhausted_above(chunk, monkeypatch):
    """Programs that run out of memory with more than `chunk` clients at once."""
    seen = []

    def fit(make, layout, largest, args, *, donate_argnums=()):
        def program(*args):
            seen.append(largest)
            if largest > chunk:
                raise OutOfMemory("RESOURCE_EXHAUSTED: Out of memory")
            return make(layout._replace(chunk=largest))(*args)

        return fitting.Fitted(program, largest, 0)

    monkeypatch.setattr(fitting, "fit", fit)
    return seen


def test_a_device_that_is_exhausted_computes_fewer_clients_at_once(monkeypatch):
    seen = exhausted_above(6, monkeypatch)
    make = lambda layout: over_clients(one_client, layout=layout)
    program = jit_over_clients(make, Layout(AUTO), len)
    np.testing.assert_allclose(program(X), jax.vmap(one_client)(X), rtol=1e-4)
    program(X)
    assert seen == [40, 20, 10, 5, 5]


def test_a_device_that_is_exhausted_by_one_client_or_by_donations_raises(monkeypatch):
    make = lambda layout: over_clients(one_client, layout=layout)
    for chunk, donated, tried in ((0, (), [40, 20, 10, 5, 2, 1]), (6, (0,), [40])):
        seen = exhausted_above(chunk, monkeypatch)
        program = jit_over_clients(make, Layout(AUTO), len, donate_argnums=donated)
        with pytest.raises(OutOfMemory):
            program(X)
        assert seen == tried
