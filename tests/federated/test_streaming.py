"""A streamed federation is the resident one, with its states elsewhere."""

import jax
import numpy as np
import pytest

from potara_jax.data.federation import Batch
from potara_jax.federated import rounds, streaming, wire
from potara_jax.federated.conditions import Conditions
from potara_jax.federated.registry import load_all
from potara_jax.federated.streaming import Streaming, stream
from potara_jax.federated.wire import Wire
from tests.helpers_federated import assert_equal, problem, run, small_batches, task

COUNTS = (4, 2, 1, 3, 4, 2)
ROUNDS, KEY = 4, jax.random.key(0)
HALF = Conditions(cohort=3, dropout=0.3, stragglers=0.5)
NAMES = ["fedsa", "rolora", "flora", "scaffold"]


def streaming_of(name, *, counts=COUNTS, conditions=HALF, way=wire.AS_IT_IS) -> tuple:
    given = problem(counts)
    algorithm = load_all()[name].make(task, small_batches)
    host = jax.tree.map(np.asarray, given.examples)
    parts = given.shared.base, given.adapter, given.shared.pool, host
    return given, Streaming(algorithm, *parts, conditions, way)


def streamed(how: Streaming, states=None, **more):
    """All rounds, and the states after them."""
    states = streaming.states_of(how) if states is None else states
    return list(stream(how, states, KEY, last=ROUNDS, **more)), states


def all_rows(states, how):
    """Every client's rows, those of clients that have not begun made anew."""
    clients = np.arange(how.clients)
    first = streaming._first_rows(how, clients, how.examples)
    begun = lambda x: states.begun.reshape(-1, *[1] * (x.ndim - 1))
    pick = lambda kept, new: np.where(begun(kept), kept, new)
    return jax.tree.map(pick, states.take(clients), first)


@pytest.mark.parametrize("name", NAMES)
def test_streaming_equals_the_resident_rounds_to_the_bit(name):
    given, how = streaming_of(name)
    progress, report = run(how.algorithm, given, number=ROUNDS, conditions=HALF)
    found, states = streamed(how)
    assert_equal(found[-1].server, progress.server)
    assert_equal(all_rows(states, how).state, progress.states)
    assert_equal(found[-1].report, report)


@pytest.mark.parametrize("name", ["fedsa", "rolora"])
def test_what_is_owed_is_streamed_too(name):
    way = Wire(wire.top_k(0.3))
    given, how = streaming_of(name, way=way)
    progress, _ = run(how.algorithm, given, number=ROUNDS, conditions=HALF, wire=way)
    found, states = streamed(how)
    assert_equal(found[-1].server, progress.server)
    assert_equal(all_rows(states, how).owed, progress.owed)


def test_a_pool_on_the_host_is_gathered():
    _, how = streaming_of("ditto")
    host = how._replace(pool=Batch(*map(np.asarray, how.pool)))
    (expected, kept), (found, states) = streamed(how), streamed(host)
    assert_equal(found, expected)
    assert_equal(all_rows(states, how), all_rows(kept, how))


def test_states_on_disk_equal_those_in_memory(tmp_path):
    _, how = streaming_of("scaffold")
    expected, kept = streamed(how)
    on_disk = streaming.states_of(how, folder=tmp_path / "states")
    found, _ = streamed(how, on_disk)
    on_disk.flush()
    again = streaming.states_of(how, folder=tmp_path / "states")
    assert_equal(found, expected)
    everybody = np.arange(how.clients)
    assert_equal(again.take(everybody), kept.take(everybody))
    np.testing.assert_array_equal(again.begun, kept.begun)


@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_going_on_from_a_kept_round_equals_not_stopping(stopped):
    _, how = streaming_of("fedala")
    expected, kept = streamed(how)
    states = streaming.states_of(how)
    for result in stream(how, states, KEY, last=ROUNDS):
        if result.number + 1 == stopped:
            break
    states.put(result.report.cohort, result.rows)
    found, _ = streamed(how, states, first=stopped, server=result.server)
    assert_equal(found, expected[stopped:])
    everybody = np.arange(how.clients)
    assert_equal(states.take(everybody), kept.take(everybody))


def test_clients_that_were_in_no_cohort_take_no_row():
    _, how = streaming_of("ditto", conditions=Conditions(cohort=1))
    found, states = streamed(how)
    seen = {int(client) for each in found for client in each.report.cohort}
    assert set(np.flatnonzero(states.begun)) == seen
    assert len(seen) < how.clients


def test_states_of_another_federation_are_refused(tmp_path):
    for counts in (COUNTS, COUNTS[:-1]):
        _, how = streaming_of("ditto", counts=counts)
        if counts == COUNTS:
            streaming.states_of(how, folder=tmp_path)
            continue
        with pytest.raises(ValueError, match=r"state-0.npy.*another federation"):
            streaming.states_of(how, folder=tmp_path)


def test_every_turn_is_compiled_once(monkeypatch):
    compiled = []
    jit = jax.jit
    monkeypatch.setattr(
        jax, "jit", lambda fn, **how: compiled.append(jit(fn, **how)) or compiled[-1]
    )
    _, how = streaming_of("rolora")
    streamed(how)
    turns = [fn for fn in compiled if fn.__name__ == "program"]
    assert [fn._cache_size() for fn in turns] == [1, 1]


def test_progress_before_the_first_round_is_as_when_resident():
    given, how = streaming_of("scaffold")
    adapters = rounds.stack(given.adapter, clients=how.clients)
    expected = rounds.start(how.algorithm, adapters, HALF)
    assert_equal(streaming.start(how), expected.server)
    assert_equal(all_rows(streaming.states_of(how), how).state, expected.states)
