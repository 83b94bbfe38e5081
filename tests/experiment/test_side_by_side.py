"""Programs side by side: in order, shown, and ended by the first error."""

import threading
import time

import jax
import pytest

from potara_jax.experiment import side_by_side as module
from potara_jax.experiment.side_by_side import Beside, side_by_side


@pytest.fixture(params=[1, 2], ids=["one processor", "two"], autouse=True)
def processors(request, monkeypatch):
    monkeypatch.setattr(module, "_processors", lambda: request.param)
    return request.param


def test_results_are_in_order_and_every_item_is_shown():
    shown = []

    def show(items):
        for number, item in enumerate(items):
            shown.append(number)
            yield item

    def slow_first(item):
        time.sleep(0.05 * (item == 0))
        return 2 * item

    assert side_by_side(slow_first, range(5), show) == [0, 2, 4, 6, 8]
    assert shown == list(range(5))
    assert side_by_side(slow_first, [1, 2]) == [2, 4]


def test_two_at_once_where_there_are_processors(processors):
    meet = threading.Barrier(processors, timeout=30)
    assert side_by_side(lambda item: meet.wait(), range(2)) is not None


def test_nothing_is_begun_after_an_error():
    begun = []

    def fail_at_first(item):
        begun.append(item)
        if item == 0:
            raise ValueError("the first")
        time.sleep(0.2)

    with pytest.raises(ValueError, match="the first"):
        side_by_side(fail_at_first, range(8))
    assert len(begun) <= 3


def test_several_devices_get_one_program_at_a_time(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    threads = side_by_side(lambda item: threading.get_ident(), range(4))
    assert set(threads) == {threading.get_ident()}


def test_what_goes_on_beside_is_done_in_turn_and_before_the_end():
    done = []

    def slow(number):
        time.sleep(0.02)
        done.append(number)

    with Beside() as work:
        for number in range(4):
            work.begin(lambda n=number: slow(n))
            assert done == list(range(number))
        work.end()
        assert done == [0, 1, 2, 3]
        work.begin(lambda: slow(4))
    assert done == [0, 1, 2, 3, 4]


def test_an_error_beside_is_raised_when_the_next_thing_begins_or_at_the_end():
    def fail():
        raise OSError("the disk is full")

    for after in (lambda work: work.begin(print), lambda work: None):
        with pytest.raises(OSError, match="full"), Beside() as work:
            work.begin(fail)
            after(work)
    with pytest.raises(KeyboardInterrupt), Beside() as work:
        work.begin(fail)
        raise KeyboardInterrupt
