import io

import jax
import pytest
from rich.console import Console

from potara_jax.runs import progress as module
from potara_jax.runs.progress import Display, Silent


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_before_a_cell_is_done_the_time_left_is_that_of_what_is_seen(clock):
    out = io.StringIO()
    display, seen = Display(Console(file=out, width=99), rounds=5), []
    with display:
        for item in display.each("weights", "abcd"):
            seen.append(item)
            clock[0] += 30
        for _ in range(3):
            clock[0] += 20
            display.round("federated", 0.5)
    assert seen == list("abcd")
    assert out.getvalue().splitlines() == [
        "weights 2/4, at least 1:30 left",
        "weights 3/4, at least 1:00 left",
        "weights 4/4, at least 0:30 left",
        "1/5 federated, loss 0.500",
        "2/5 federated, loss 0.500, at least 1:00 left",
        "3/5 federated, loss 0.500, at least 0:40 left",
    ]


def test_the_time_left_is_without_compiling(clock):
    """The first of three cells takes 20 s, and 100 s to trace and compile."""
    out, compiled = io.StringIO(), "/jax/core/compile/backend_compile_duration"
    with Display(Console(file=out, width=99), rounds=1, cells=3) as display:
        display.round("federated", 0.5)
        clock[0] += 60
        jax.monitoring.record_event_duration_secs(compiled, 50)
        clock[0] += 60
        jax.monitoring.record_event_duration_secs(compiled, 20)  # in another thread
        jax.monitoring.record_event_duration_secs(compiled, 50)
        jax.monitoring.record_event_duration_secs("/jax/another", 100)
        display.end_cell()
        clock[0] += 12
        display.round("federated", 0.5)
    assert out.getvalue().splitlines()[-1] == "2/3 federated, loss 0.500, 0:28 left"


@pytest.mark.parametrize("first", [0, 100])
def test_the_time_left_is_that_of_whole_cells(clock, first):
    """100 s before the first round of all; the first cell counts while it is alone."""
    out = io.StringIO()

    def cell(display, of_round, of_scores):
        display.skip(0)  # as every phase says that begins at its first round
        for _ in range(2):
            clock[0] += of_round
            display.round("federated", 0.5)
        for _ in display.each("scores", "ab"):
            clock[0] += of_scores
        display.end_cell()

    with Display(Console(file=out, width=99), rounds=2, cells=4) as display:
        clock[0] += first
        cell(display, 20, 30)
        cell(display, 11, 14)
        cell(display, 11, 14)
    assert out.getvalue().splitlines() == [
        "1/8 federated, loss 0.500",
        "2/8 federated, loss 0.500, at least 2:00 left",
        "scores 2/2, at least 0:30 left",
        "3/8 federated, loss 0.500, 3:49 left",
        "4/8 federated, loss 0.500, 3:38 left",
        "scores 2/2, 3:24 left",
        "5/8 federated, loss 0.500, 1:29 left",
        "6/8 federated, loss 0.500, 1:18 left",
        "scores 2/2, 1:04 left",
    ]


def test_a_cell_that_was_begun_earlier_says_nothing_about_others(clock):
    out = io.StringIO()
    with Display(Console(file=out, width=99), rounds=9, cells=3) as display:
        display.skip(9)
        display.end_cell()
        display.skip(7)
        for _ in range(2):
            clock[0] += 20
            display.round("federated", 0.5)
        display.end_cell()
        clock[0] += 20
        display.round("federated", 0.5)
    assert out.getvalue().splitlines() == [
        "17/27 federated, loss 0.500",
        "18/27 federated, loss 0.500, at least 3:00 left",
        "19/27 federated, loss 0.500, at least 2:40 left",
    ]


def test_a_terminal_has_a_bar(clock):
    out = io.StringIO()
    console = Console(file=out, width=99, force_terminal=True, color_system=None)
    with Display(console, rounds=5) as display:
        display.skip(2)
        display.round("federated", None)
        for _ in display.each("weights", "abc"):
            clock[0] += 30
    shown = out.getvalue()
    assert "3/5" in shown and "weights 3/3, at least 0:30 left" in shown


def test_silence_passes_lines_on_and_shows_nothing(capsys):
    lines = []
    with Silent(lines.append) as progress:
        progress.skip(1)
        progress.end_cell()
        progress.round("federated", 0.5)
        progress.log("a line")
        assert list(progress.each("weights", "ab")) == ["a", "b"]
    assert lines == ["a line"]
    assert capsys.readouterr().out == ""
