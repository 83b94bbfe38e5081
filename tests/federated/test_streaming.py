"""States on the host: the rounds are those of states on the device, to the bit."""

import jax
import numpy as np
import pytest

from potara_jax import federated
from potara_jax.clients import fitting
from potara_jax.federated import rounds, wire
from potara_jax.federated.conditions import Conditions
from potara_jax.federated.registry import algorithms
from potara_jax.federated.rounds import iterate, make_round, progress_of
from potara_jax.federated.streaming import start_on_host
from potara_jax.federated.wire import AS_IT_IS, Wire
from tests.helpers_federated import assert_equal, problem, run, small_batches, task

pytestmark = pytest.mark.slow

COUNTS = (4, 2, 1, 3, 4, 2)
CLIENTS, ROUNDS, KEY = len(COUNTS), 4, jax.random.key(0)
HALF = Conditions(cohort=3, dropout=0.3, stragglers=0.5)
NAMES = ["fedsa", "rolora", "flora", "scaffold"]


class Streamed:
    """A federation with its states on the host."""

    def __init__(self, name, *, counts=COUNTS, conditions=HALF, way=AS_IT_IS):
        self.given = problem(counts)
        self.algorithm = algorithms()[name].make(task, small_batches)
        self.options = {"conditions": conditions, "wire": way}
        self.round = make_round(self.algorithm, **self.options)
        self.shared = self.given.shared

    def start(self, folder=None):
        args = self.shared, self.given.adapter, self.given.examples, KEY
        return start_on_host(self.algorithm, *args, folder=folder, **self.options)

    def run(self, progress=None, *, first=0, last=ROUNDS):
        args = self.round, self.shared, self.given.examples
        progress = self.start() if progress is None else progress
        return list(iterate(*args, progress, KEY, first=first, last=last))


def contents(steps):
    """All that a step holds, but for the states."""
    return [(s.number, rounds.checkpoint(s.progress), s.report) for s in steps]


def stored(progress):
    states = progress.states
    return states.begun, states.take(np.arange(states.clients))


@pytest.mark.parametrize("name", NAMES)
def test_streaming_equals_the_resident_rounds_to_the_bit(name):
    streamed = Streamed(name)
    algorithm = streamed.algorithm
    progress, report = run(algorithm, streamed.given, number=ROUNDS, conditions=HALF)
    *_, last = streamed.run()
    assert_equal(progress_of(algorithm, last.progress), progress)
    assert_equal(last.report, report)


@pytest.mark.parametrize("name", ["fedsa", "rolora"])
def test_what_is_owed_is_streamed_too(name):
    way = Wire(wire.top_k(0.3))
    streamed = Streamed(name, way=way)
    algorithm, options = streamed.algorithm, {"conditions": HALF, "wire": way}
    progress, _ = run(algorithm, streamed.given, number=ROUNDS, **options)
    *_, last = streamed.run()
    assert_equal(progress_of(algorithm, last.progress), progress)


@pytest.mark.parametrize("name", ["scaffold", "rolora"])
def test_every_step_has_the_progress_of_any_clients(name):
    streamed, some = Streamed(name), np.array([4, 0])
    resident = federated.stack(streamed.given.adapter, clients=CLIENTS)
    resident = federated.start(streamed.algorithm, resident, KEY, HALF)
    args = streamed.round, streamed.shared, streamed.given.examples
    on_host = iterate(*args, streamed.start(), KEY, last=ROUNDS)
    on_device = iterate(*args, resident, KEY, last=ROUNDS)
    for one, other in zip(on_host, on_device, strict=True):
        expected = progress_of(streamed.algorithm, other.progress, some)
        assert_equal(progress_of(streamed.algorithm, one.progress, some), expected)
        assert_equal(
            expected.states, jax.tree.map(lambda x: x[some], other.progress[1])
        )


def test_a_pool_on_the_host_is_gathered():
    streamed = Streamed("ditto")
    expected = streamed.run()
    pool = jax.tree.map(np.asarray, streamed.shared.pool)
    streamed.shared = streamed.shared._replace(pool=pool)
    steps = streamed.run()
    assert_equal(contents(steps), contents(expected))
    assert_equal(stored(steps[-1].progress), stored(expected[-1].progress))


def test_states_on_disk_equal_those_in_memory(tmp_path):
    streamed = Streamed("scaffold")
    expected = streamed.run()
    steps = streamed.run(streamed.start(tmp_path / "states"))
    assert_equal(contents(steps), contents(expected))
    again = streamed.start(tmp_path / "states")
    assert_equal(stored(again), stored(expected[-1].progress))
    assert again.states.rounds == ROUNDS


@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_going_on_from_a_step_equals_not_stopping(stopped):
    streamed = Streamed("fedala")
    expected = streamed.run()
    begin = streamed.start()
    args = streamed.round, streamed.shared, streamed.given.examples
    for step in iterate(*args, begin, KEY, last=ROUNDS):
        if step.number + 1 == stopped:
            break
    assert rounds.resumable(begin, stopped)
    resumed = rounds.resume(begin, rounds.checkpoint(step.progress))
    steps = streamed.run(resumed, first=stopped)
    assert_equal(contents(steps), contents(expected[stopped:]))
    assert_equal(stored(resumed), stored(expected[-1].progress))


def test_states_that_went_further_or_were_lost_do_not_fit_a_checkpoint(tmp_path):
    streamed = Streamed("ditto")
    begin = streamed.start(tmp_path)
    streamed.run(begin)
    assert rounds.resumable(begin, ROUNDS)
    assert not rounds.resumable(begin, ROUNDS - 1)
    assert not rounds.resumable(streamed.start(), ROUNDS)
    begin.states.clear()
    assert_equal(stored(begin), stored(streamed.start()))
    assert begin.states.rounds == 0
    assert not rounds.resumable(begin, ROUNDS)


def test_clients_that_were_in_no_cohort_take_no_row():
    streamed = Streamed("ditto", conditions=Conditions(cohort=1))
    steps = streamed.run()
    seen = {int(client) for step in steps for client in step.report.cohort}
    assert set(np.flatnonzero(steps[-1].progress.states.begun)) == seen
    assert len(seen) < CLIENTS


def test_states_of_another_federation_are_refused(tmp_path):
    Streamed("ditto").start(tmp_path)
    with pytest.raises(ValueError, match=r"state-0.npy.*another federation"):
        Streamed("ditto", counts=COUNTS[:-1]).start(tmp_path)


def test_every_turn_is_compiled_once(monkeypatch):
    compiled, jit = [], fitting.jit
    kept = lambda fn, **how: compiled.append(jit(fn, **how)) or compiled[-1]
    monkeypatch.setattr(fitting, "jit", kept)
    streamed = Streamed("rolora")
    before = list(compiled)
    streamed.run()
    streamed.run()
    turns = [fn for fn in before if fn._cache_size()]
    assert [fn._cache_size() for fn in turns] == [1, 1]


def test_progress_before_the_first_round_is_as_when_resident():
    streamed = Streamed("scaffold")
    adapters = federated.stack(streamed.given.adapter, clients=CLIENTS)
    expected = federated.start(streamed.algorithm, adapters, KEY, HALF)
    assert_equal(progress_of(streamed.algorithm, streamed.start()), expected)


def test_states_on_the_device_are_donated():
    streamed = Streamed("scaffold")
    adapters = federated.stack(streamed.given.adapter, clients=CLIENTS)
    begin = federated.start(streamed.algorithm, adapters, KEY, HALF)
    streamed.run(begin, last=1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(begin))
