import io

import pytest
from rich.console import Console

from potara_jax.runs import progress as module
from potara_jax.runs.progress import Display, Silent


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_follows_the_pace_so_far(clock):
    out = io.StringIO()
    display, seen = Display(Console(file=out, width=99), total=5), []
    with display:
        for item in display.each("weights", "abcd"):
            seen.append(item)
            clock[0] += 30
        for _ in range(3):
            clock[0] += 20
            display.round("federated", 0.5)
    assert seen == list("abcd")
    assert out.getvalue().splitlines() == [
        "weights 2/4, 1:30 left",
        "weights 3/4, 1:00 left",
        "weights 4/4, 0:30 left",
        "1/5 federated, loss 0.500, unknown time left",
        "2/5 federated, loss 0.500, 1:00 left",
        "3/5 federated, loss 0.500, 0:40 left",
    ]


def test_the_time_of_all_rounds_is_said_after_the_first_ones(clock):
    out = io.StringIO()
    with Display(Console(file=out, width=99), total=100) as display:
        display.skip(16)
        for _ in range(8):
            clock[0] += 2
            display.round("federated", 0.5)
    (line,) = (x for x in out.getvalue().splitlines() if "at the pace" in x)
    assert line == (
        "at the pace of the first rounds, the 80 that are left take 2:40; weights and "
        "scores come on top"
    )


def test_a_terminal_has_a_bar(clock):
    out = io.StringIO()
    console = Console(file=out, width=99, force_terminal=True, color_system=None)
    with Display(console, total=5) as display:
        display.skip(2)
        display.round("federated", None)
        for _ in display.each("weights", "abc"):
            clock[0] += 30
    shown = out.getvalue()
    assert "3/5" in shown and "weights 3/3, 0:30 left" in shown


def test_silence_passes_lines_on_and_shows_nothing(capsys):
    lines = []
    with Silent(lines.append) as progress:
        progress.skip(1)
        progress.round("federated", 0.5)
        progress.log("a line")
        assert list(progress.each("weights", "ab")) == ["a", "b"]
    assert lines == ["a line"]
    assert capsys.readouterr().out == ""
