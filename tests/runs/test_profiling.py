import warnings

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from potara_jax.runs import profiling
from potara_jax.runs.profiling import keep_compiled, traced


@pytest.mark.parametrize("rounds", [2, 3, 6])
def test_a_few_rounds_are_traced(tmp_path, rounds):
    lines, step = [], jax.jit(lambda x: x @ x)
    for number in traced(range(rounds), tmp_path / "trace", lines.append):
        jax.block_until_ready(step(jax.numpy.ones((3 + number, 3 + number))))
    assert lines == [f"profile: {tmp_path / 'trace'}"]
    assert list(tmp_path.rglob("perfetto_trace.json.gz"))
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_trace_ends_if_the_rounds_break_off(tmp_path):
    lines = []
    with pytest.raises(KeyboardInterrupt):
        for number in traced(range(9), tmp_path / "trace", lines.append):
            if number == 2:
                raise KeyboardInterrupt
    assert len(lines) <= 1
    jax.profiler.start_trace(tmp_path / "another")  # nothing is being traced any more
    jax.profiler.stop_trace()


def test_nothing_is_traced_unless_wanted():
    assert list(traced(range(5), None, pytest.fail)) == [0, 1, 2, 3, 4]


@pytest.fixture
def forgotten():
    """JAX as it keeps programs, before anybody has set where."""
    new = {"jax_compilation_cache_dir": None, "jax_enable_compilation_cache": True}
    before = {name: getattr(jax.config, name) for name in new}
    for name, value in new.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_damaged_program_is_compiled_again_without_a_warning(tmp_path, forgotten):
    def compiled():
        compilation_cache.reset_cache()  # which remembers its folder
        jax.clear_caches()
        return jax.jit(lambda x: 3 * x + 1)(jnp.arange(7.0)).sum()

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        keep_compiled(tmp_path)
        assert compiled() == 70
        entries = list(tmp_path.rglob("*-cache"))
        for entry in entries:
            entry.write_bytes(entry.read_bytes()[:9])
        assert entries and compiled() == 70
    compilation_cache.reset_cache()
    assert [str(warning.message) for warning in seen] == []


def test_compiled_programs_are_kept_in_the_cache(tmp_path, forgotten, monkeypatch):
    keep_compiled(tmp_path)
    folder = jax.config.jax_compilation_cache_dir
    assert folder == str(tmp_path / "compiled" / profiling._processor())
    keep_compiled(tmp_path / "elsewhere")
    assert jax.config.jax_compilation_cache_dir == folder
