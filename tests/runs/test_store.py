"""What is the same of a run folder and of a store in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.runs.checkpoints import Checkpoint
from potara_jax.runs.store import Cell, Memory
from tests.runs.test_folder import ADAPTERS, CELL, opened, record


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    return opened(tmp_path / "run") if request.param == "folder" else Memory(print)


def test_a_cells_record_and_lines_come_back(store):
    assert store.cell(CELL) is None
    store.end_cell(CELL, {"methods": [1]})
    assert store.cell(CELL) == {"methods": [1]}
    assert store.cell(Cell("0.5", 0)) is None
    assert store.lines("speed") == []
    for number in (1, 2):
        store.add_line("speed", {"round": number})
    assert store.lines("speed") == [{"round": 1}, {"round": 2}]


def test_adapters_come_back_by_method(store):
    for name in ("potara core", "local"):
        store.keep_adapters(CELL, name, ADAPTERS)
    assert sorted(store.methods(CELL)) == ["local", "potara core"]
    assert store.methods(Cell("0.5", 0)) == []
    jax.tree.map(
        np.testing.assert_array_equal, store.adapters(CELL, "potara core"), ADAPTERS
    )
    with pytest.raises(ValueError, match=r"not finished|no adapters of 'ties'"):
        store.adapters(CELL, "ties")


def test_a_forgotten_phase_starts_over(store):
    for number in (1, 2):
        history = [record(i) for i in range(1, number + 1)]
        checkpoint = Checkpoint(number, jnp.ones(2), history, 0.0)
        store.saver(CELL, "federated", checkpoint)()
    store.forget_phase(CELL, "federated")
    assert store.begin_phase(CELL, "federated", jnp.ones(2)) is None


def test_lines_for_the_user_go_where_they_are_shown(store):
    lines = []
    heard = store.warning(lines.append)
    heard.warn("a line")
    assert lines == ["a line"]
    heard.end_cell(CELL, {"methods": [1]})
    assert store.cell(CELL) == {"methods": [1]}


def test_a_finished_run_is_shown_again_from_a_folder_alone(store):
    assert store.results() is None
    store.finish({"methods": [1]})
    shown = None if isinstance(store, Memory) else {"methods": [1]}
    assert store.results() == shown


def test_what_took_long_is_kept_in_a_folder_until_the_cell_is_finished(store):
    assert store.kept(CELL, "scores local") is None
    store.keep(CELL, "scores local", {"a": jnp.arange(3.0)})
    store.keep(CELL, "a user's", {"a": object()})
    kept = store.kept(CELL, "scores local")
    if isinstance(store, Memory):
        assert kept is None
        return
    np.testing.assert_array_equal(kept["a"], [0, 1, 2])
    assert store.kept(CELL, "scores base") is store.kept(CELL, "a user's") is None
    (path,) = (store.path / "measured" / CELL.name).iterdir()
    path.write_bytes(path.read_bytes()[:40])
    lines = []
    assert store.warning(lines.append).kept(CELL, "scores local") is None
    assert "is damaged; making it again" in lines[0]
    store.end_cell(CELL, {"methods": [1]})
    assert not (store.path / "measured" / CELL.name).exists()
