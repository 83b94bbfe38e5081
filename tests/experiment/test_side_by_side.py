"""Work side by side: in order, shown, and ended by the first error."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from potara_jax.experiment import side_by_side as module
from potara_jax.experiment.programs import Programs
from potara_jax.experiment.side_by_side import Beside, side_by_side


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(module, "_processors", lambda: 2)


def threads_of(items):
    """The threads that compute some items."""
    return set(side_by_side(lambda item: threading.get_ident(), items))


@pytest.mark.parametrize("processors", [1, 2])
def test_results_are_in_order_and_every_item_is_shown(processors, monkeypatch):
    monkeypatch.setattr(module, "_processors", lambda: processors)
    shown = []

    def show(items):
        for item in items:
            shown.append(item)
            yield item

    def slow_first(item):
        time.sleep(0.05 * (item == 0))
        return 2 * item

    assert side_by_side(slow_first, range(5), show) == [0, 2, 4, 6, 8]
    assert shown == list(range(5))
    assert side_by_side(slow_first, [1, 2]) == [2, 4]


def test_two_at_once(two):
    meet = threading.Barrier(2, timeout=30)
    assert sorted(side_by_side(lambda item: meet.wait(), range(2))) == [0, 1]


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (module, "_processors", 1),
        (jax, "device_count", 2),
        (jax, "default_backend", "gpu"),
        (module.memory, "free_on_host", 0),
    ],
)
def test_one_at_a_time_where_two_are_no_gain_or_not_safe(
    two, monkeypatch, place, name, value
):
    assert threading.get_ident() not in threads_of(range(4))
    monkeypatch.setattr(place, name, lambda: value)
    assert threads_of(range(4)) == {threading.get_ident()}


def test_settings_of_one_thread_hold(two):
    with jax.enable_x64(True):
        (made,) = side_by_side(jnp.ones, [3])
    assert made.dtype == jnp.float64


@pytest.mark.parametrize("failing", [0, 1])
def test_nothing_is_begun_after_an_error(two, failing):
    begun, end = [], threading.Event()

    def work(item):
        begun.append(item)
        if item == failing:
            raise ValueError("it fails")
        end.wait(0.3)

    with pytest.raises(ValueError, match="it fails"):
        side_by_side(work, range(8))
    assert len(begun) <= 3


def test_a_program_is_made_once_for_two_threads():
    programs, made = Programs(None, None), []

    def make():
        time.sleep(0.05)
        made.append("it")
        return made

    threads = [threading.Thread(target=programs.once, args=("x", make)) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["it"]


def test_what_goes_on_beside_is_done_in_turn_and_before_the_end():
    done, events = [], [threading.Event() for _ in range(3)]

    def work(number):
        events[number].wait(30)
        done.append(number)

    with Beside() as beside:
        beside.begin(lambda: work(0))
        assert done == []
        events[0].set()
        beside.begin(lambda: work(1))
        assert done == [0]
        events[1].set()
        beside.end()
        assert done == [0, 1]
        beside.begin(lambda: work(2))
        events[2].set()
    assert done == [0, 1, 2]


def test_an_error_beside_is_raised_when_the_next_thing_begins_or_at_the_end():
    def fail():
        raise OSError("the disk is full")

    for after in (lambda beside: beside.begin(print), lambda beside: None):
        with pytest.raises(OSError, match="full"), Beside() as beside:
            beside.begin(fail)
            after(beside)
    with pytest.raises(OSError, match="full"), Beside() as beside:
        beside.begin(fail)
        raise KeyboardInterrupt
