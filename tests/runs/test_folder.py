"""The run folder keeps what it has, and refuses what is no run's."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.runs import files
from potara_jax.runs.checkpoints import Checkpoint
from potara_jax.runs.folder import open_folder
from potara_jax.runs.store import Cell

CONFIG = {"experiment": "digits", "lora.rank": 8, "cells.seeds": [0]}
CELL = Cell("0.1", 0)
ADAPTERS = {"block/query": {"a": jnp.ones((2, 3, 1)), "b": jnp.zeros((2, 1, 4))}}


def opened(path, config=None, *, rerun=False):
    """The store of a run that has begun."""
    return looked_at(path, config, rerun=rerun).begin()


def looked_at(path, config=None, *, rerun=False):
    path.mkdir(exist_ok=True)
    return open_folder(path, config or CONFIG, rerun=rerun, warn=print)


def record(number: int, phase: str = "federated") -> dict:
    return {**CELL._asdict(), "phase": phase, "round": number}


def rounds(store, number: int, phase: str = "federated") -> None:
    for i in range(1, number + 1):
        history = [record(j, phase) for j in range(1, i + 1)]
        store.saver(CELL, phase, Checkpoint(i, jnp.ones(2) * i, history, 0.0))()


def lines(store) -> list[dict]:
    text = (store.path / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_without_a_round_makes_room_for_another(tmp_path):
    opened(tmp_path / "run")
    other = {**CONFIG, "lora.rank": 4}
    opened(tmp_path / "run", other)
    assert json.loads((tmp_path / "run/config.json").read_text()) == other


def test_another_configuration_is_refused_by_the_setting_that_differs(tmp_path):
    rounds(opened(tmp_path / "run"), 1)
    with pytest.raises(ValueError, match=r"lora\.rank 8, not 4"):
        opened(tmp_path / "run", {**CONFIG, "lora.rank": 4})


def test_a_folder_of_another_job_or_with_damaged_settings_is_named(tmp_path):
    run = {"job": "run", **CONFIG}
    rounds(opened(tmp_path / "run", run), 1)
    with pytest.raises(ValueError, match="a run of digits, not a study of digits"):
        opened(tmp_path / "run", {**run, "job": "study"})
    for content in (b"\xff", b"[1]"):
        (tmp_path / "run/config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json is damaged.*rerun"):
            opened(tmp_path / "run", run)
    opened(tmp_path / "run", run, rerun=True)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="not a run folder"):
        opened(tmp_path)
    with pytest.raises(ValueError, match="not a run folder"):
        opened(tmp_path, rerun=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_rerun_clears_a_run_and_nothing_else(tmp_path):
    store = opened(tmp_path / "run")
    rounds(store, 2)
    store.end_cell(CELL, {"methods": []})
    (store.path / "notes.txt").write_text("mine")
    fresh = opened(tmp_path / "run", {**CONFIG, "lora.rank": 4}, rerun=True)
    assert fresh.cell(CELL) is None
    assert fresh.begin_phase(CELL, "federated", jnp.ones(2)) is None
    assert (fresh.path / "notes.txt").read_text() == "mine"


def test_a_phase_begins_after_its_last_round(tmp_path):
    store = opened(tmp_path / "run")
    rounds(store, 3)
    begun = store.begin_phase(CELL, "federated", jnp.ones(2))
    assert begun.round == 3
    assert lines(store) == [record(i) for i in (1, 2, 3)]


def test_a_torn_line_and_lines_after_the_checkpoint_are_dropped(tmp_path):
    store = opened(tmp_path / "run")
    rounds(store, 2, "federated")
    rounds(store, 2, "local")
    with open(store.path / "metrics.jsonl", "a") as file:
        file.write('{"a": 1}\n[2]\n')
        file.write(json.dumps(record(3, "local")) + "\n" + '{"heterogen')
    with open(store.path / "metrics.jsonl", "ab") as file:
        file.write(b"\xff\n")
    store.begin_phase(CELL, "local", jnp.ones(2))
    expected = [record(i, p) for p in ("federated", "local") for i in (1, 2)]
    assert lines(store) == expected


def test_a_configuration_that_lacks_a_setting_is_another_one(tmp_path):
    rounds(opened(tmp_path / "run"), 1)
    with pytest.raises(ValueError, match=r"local\.rounds None, not 2 \(and 1 more"):
        opened(tmp_path / "run", {**CONFIG, "local.rounds": 2, "local.start": "shared"})


def test_data_that_have_changed_are_named(tmp_path):
    rounds(opened(tmp_path / "run", {**CONFIG, files.DATA: "a"}), 1)
    with pytest.raises(
        ValueError, match="whose data, checkpoint or code of yours have changed"
    ):
        opened(tmp_path / "run", {**CONFIG, files.DATA: "b"})


def contents(path) -> dict:
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("rerun", [False, True])
def test_nothing_is_changed_before_a_run_begins(tmp_path, rerun):
    store = opened(tmp_path / "run")
    if rerun:
        rounds(store, 2)
        store.finish({"methods": []})
    before = contents(tmp_path)
    other = looked_at(tmp_path / "run", {**CONFIG, "lora.rank": 4}, rerun=rerun)
    assert other.results() is None
    assert contents(tmp_path) == before
    begun = other.begin()
    assert json.loads((tmp_path / "run/config.json").read_text())["lora.rank"] == 4
    assert {p.name for p in contents(tmp_path)} == {"config.json", "versions.json"}
    begun.finish({"methods": [1]})
    assert begun.results() == {"methods": [1]}


def test_a_folder_that_a_run_does_not_use_is_removed_with_its_new_parents(tmp_path):
    folder = tmp_path / "a" / "b" / "c"
    (tmp_path / "a").mkdir()
    with pytest.raises(RuntimeError), files.locked(folder):
        raise RuntimeError
    assert contents(tmp_path) == {} and [*tmp_path.iterdir()] == [tmp_path / "a"]
    assert not (tmp_path / "a" / "b").exists()
    with files.locked(folder):
        (folder / "x").touch()
    assert {p.name for p in folder.iterdir()} == {".lock", "x"}
    (folder / "x").unlink()
    with files.locked(folder):
        pass
    assert folder.exists()  # it was there before


def test_two_runs_cannot_have_one_folder(tmp_path):
    with files.locked(tmp_path):
        second = files.locked(tmp_path)
        with pytest.raises(ValueError, match="another run"):
            second.__enter__()


def test_writing_replaces_whole_files(tmp_path):
    path = tmp_path / "sub" / "a.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 2}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", ["results.json", "cells/0.1-seed-0.json"])
def test_damaged_results_are_reported_and_recomputed(tmp_path, name):
    lines = []
    store = opened(tmp_path / "run")._replace(warn=lines.append)
    store.end_cell(CELL, {"methods": []})
    files.write_json(store.path / "results.json", {"methods": []})
    assert store.cell(CELL) is not None and store.results() is not None
    for number, content in enumerate((b'{"methods": [', b"\xff{", b"{}", b"[1]"), 1):
        (store.path / name).write_bytes(content)
        value = store.results() if name == "results.json" else store.cell(CELL)
        assert value is None
        assert len(lines) == number and name in lines[-1]


def test_scores_that_are_not_finite_come_back_from_strict_json(tmp_path):
    nan, infinite = float("nan"), float("inf")
    scores = {"mean": nan, "newcomers": None, "accuracy": [0.5, nan], "weights": None}
    results = {"methods": [scores | {"loss": [1.0, infinite]}]}
    store = opened(tmp_path / "run")
    store.end_cell(CELL, results)
    store.finish(results)
    store.add_line("metrics", {"loss": nan})

    def refuse(constant):
        raise ValueError(constant)

    for path in ("results.json", "cells/0.1-seed-0.json", "metrics.jsonl"):
        json.loads((store.path / path).read_text(), parse_constant=refuse)
    for found in (store.results(), store.cell(CELL)):
        np.testing.assert_equal(found, {"methods": [scores | {"loss": [1.0, nan]}]})


def test_unreadable_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        files.read_json(tmp_path / "config.json")


def test_damaged_adapters_are_named(tmp_path):
    store = opened(tmp_path / "run")
    store.keep_adapters(CELL, "local", ADAPTERS)
    (path,) = (tmp_path / "run").rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"local\.safetensors is damaged.*rerun"):
        store.adapters(CELL, "local")
