"""Checkpoints come back whole, or the one before them does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.runs.checkpoints import Checkpoint, restore, saver


def checkpoint(number: int) -> Checkpoint:
    state = {"a": jnp.full((2, 3), float(number)), "n": jnp.arange(4) * number}
    return Checkpoint(number, state, [{"round": i + 1} for i in range(number)], 1.5)


@pytest.fixture
def folder(tmp_path):
    for number in (1, 2, 3):
        saver(tmp_path / "phase", checkpoint(number))()
    return tmp_path / "phase"


def same(restored: Checkpoint, number: int) -> None:
    jax.tree.map(
        np.testing.assert_array_equal, restored.state, checkpoint(number).state
    )
    assert restored.round == number
    assert restored.history == checkpoint(number).history
    assert restored.seconds == 1.5


def test_the_newest_comes_back_as_it_was(folder):
    lines = []
    same(restore(folder, checkpoint(0).state, lines.append), 3)
    assert lines == []


def test_only_the_last_two_are_kept(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]


def test_what_a_killed_process_left_unfinished_is_removed(folder):
    (folder / "4.orbax-checkpoint-tmp" / "d").mkdir(parents=True)
    (folder / "4.orbax-checkpoint-tmp-17").mkdir()
    same(restore(folder, checkpoint(0).state, print), 3)
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]


def test_an_empty_folder_gives_none(tmp_path):
    assert restore(tmp_path / "none", checkpoint(0).state, print) is None


def test_a_truncated_checkpoint_is_reported_and_the_previous_used(folder):
    files = [p for p in (folder / "3").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    lines = []
    same(restore(folder, checkpoint(0).state, lines.append), 2)
    assert len(lines) == 1
    assert "3" in lines[0] and "damaged" in lines[0]


@pytest.mark.parametrize("removed", ["_METADATA", "manifest.ocdbt"])
def test_a_checkpoint_that_lacks_a_file_is_ignored(folder, removed):
    for path in (folder / "3").rglob(removed):
        path.unlink()
    lines = []
    same(restore(folder, checkpoint(0).state, lines.append), 2)
    assert len(lines) == 1


def test_every_flipped_byte_of_the_arrays_is_noticed(folder):
    files = [p for p in (folder / "3" / "d").rglob("*") if p.is_file()]
    content = bytearray(files[0].read_bytes())
    for place in range(0, len(content), 7):
        content[place] ^= 0xFF
    files[0].write_bytes(bytes(content))
    lines = []
    same(restore(folder, checkpoint(0).state, lines.append), 2)
    assert len(lines) == 1


def test_if_all_are_damaged_the_phase_starts_over(folder):
    for path in folder.rglob("_METADATA"):
        path.write_text("{")
    lines = []
    assert restore(folder, checkpoint(0).state, lines.append) is None
    assert len(lines) == 2


def test_arrays_of_another_shape_are_refused(folder):
    other = {"a": jnp.zeros((5, 3)), "n": jnp.arange(4)}
    lines = []
    assert restore(folder, other, lines.append) is None
    assert "shapes" in lines[0]


def test_any_dtype_and_empty_arrays_come_back(tmp_path):
    state = {
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "true": jnp.array([True, False]),
        "one": np.float64(2.5),
        "none": np.zeros((0, 4), np.int8),
    }
    saver(tmp_path, Checkpoint(1, state, [], 0.0))()
    like = jax.tree.map(jnp.zeros_like, state) | {"one": np.float64(0)}
    restored = restore(tmp_path, like, print).state
    for name, value in state.items():
        np.testing.assert_array_equal(restored[name], value)
        assert restored[name].shape == np.shape(value)
    assert restored["half"].dtype == jnp.bfloat16
