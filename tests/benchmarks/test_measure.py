import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from benchmarks import figure, measure, run
from benchmarks.measure import Line, Point
from benchmarks.merging import CASES, Sizes

pytestmark = pytest.mark.slow

AIMS = [
    (0.7, ">= 0.7", True),
    (0.6, ">= 0.7", False),
    (1.2, "<= 1.3", True),
    (1.4, "<= 1.3", False),
    (1.0, "", None),
]


@pytest.mark.parametrize(("ratio", "aim", "met"), AIMS)
def test_a_line_says_whether_its_aim_is_met(ratio, aim, met):
    assert Line("", "", "", ratio, aim).met is met


def test_an_intermediate_array_is_detected():
    x = jnp.ones((3, 7))
    outer = lambda x: jnp.tanh(x.T @ x) @ x.T
    assert measure.has_array(outer, x, rows=7, columns=7)
    assert not measure.has_array(outer, x, rows=5, columns=7)


def test_bytes_are_those_of_the_arrays():
    tree = {"a": jnp.ones((2, 3)), "b": jnp.ones(4, jnp.bfloat16)}
    assert measure.size(tree) == 32
    assert measure.size(jax.eval_shape(lambda: tree)) == 32


def test_another_shape_is_compiled_again():
    double = jax.jit(lambda x: 2 * x)
    calls = [(jnp.ones(2),), (jnp.ones(3),), (jnp.zeros(2),)]
    assert measure.compilations(double, *calls) == 2


def test_a_host_transfer_is_refused():
    with pytest.raises(RuntimeError, match=r"[Dd]isallowed"):
        measure.compilations(jax.jit(lambda x: 2 * x), (1.0,))


def test_every_call_is_timed():
    counts = [0, 0]

    def call(i):
        counts[i] += 1
        return jnp.zeros(())

    times = measure.seconds(lambda: call(0), lambda: call(1), repeats=3)
    assert counts == [4, 4] and min(times) > 0


def test_small_cases_give_lines():
    sizes = Sizes(clients=2, repeats=1, depth=1, together=1)
    lines = [*CASES["truncation"](sizes), *CASES["compilations"](sizes)]
    assert lines[-1].ratio == 1 and lines[-1].met
    assert "no 768 x 768 array" in lines[1].what and lines[1].met


def test_the_figure_has_a_panel_for_everything_that_grows(tmp_path):
    speed = lambda name, n: Point("speed, by clients", name, n, n * 2.0)
    points = [speed(name, n) for name in "ab" for n in (1, 9)]
    more = [Point("bytes, by chunk", "a", n, 1e6 * 4.0**n) for n in range(5)]
    lines = [Line("", "", "", 1.0, points=(point,)) for point in (*points, *more)]
    first, second = (figure.draw(lines, tmp_path / name)[0] for name in "xy")
    assert first.name == "bench.png" and first.read_bytes() == second.read_bytes()
    assert figure.draw([Line("", "", "", 1.0)], tmp_path) == []


def test_what_is_not_installed_is_left_out(capsys, tmp_path, monkeypatch):
    def missing(sizes):
        raise ModuleNotFoundError(name="torch")
        yield

    def broken(sizes):
        raise AttributeError("of another version")
        yield

    monkeypatch.setitem(run.CASES, "torch", missing)
    monkeypatch.setitem(run.CASES, "fedjax", broken)
    settings = run.Bench(out=tmp_path, cases=("torch", "fedjax"))
    assert run.bench(settings, Console()) == []
    printed = capsys.readouterr().out
    assert "torch is not installed" in printed and "of another version" in printed
    monkeypatch.setitem(run.CASES, "share", broken)
    with pytest.raises(AttributeError):
        run.bench(run.Bench(out=tmp_path, cases=("share",)), Console())
