from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from potara_jax.experiment import phases
from potara_jax.experiments import digits
from potara_jax.jobs import Simulate, preset, run, simulate
from tests.jobs.tiny import DIGITS, potara, reproducible

pytestmark = pytest.mark.slow

EXPERIMENT_SETTINGS = DIGITS | {
    "cells.heterogeneity": ("0.1",),
    "cells.seeds": (0,),
    "cells.clients": 12,
    "participation.cohort": "4",
    "federated.rounds": 5,
    "federated.algorithm": "ditto",
    "source.examples": 9,
}
TINY = EXPERIMENT_SETTINGS | {"scored": 5}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def simulated(cache: Path, out: Path, **more) -> int:
    return potara("simulate", TINY | {"out": out, "cache": cache} | more)


@pytest.fixture(scope="module")
def undisturbed(cache, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("simulate") / "run"
    assert simulated(cache, out) == 0
    return out


def results(folder: Path) -> dict:
    return reproducible(json.loads((folder / "results.json").read_text()))


def kept(folder: Path) -> list[np.ndarray]:
    return [np.load(path) for path in sorted(folder.glob("states/*/*.npy"))]


def test_a_simulation_says_what_it_was(undisturbed):
    (cell,) = results(undisturbed)["cells"]
    assert cell["algorithm"] == "Ditto"
    assert (cell["clients"], cell["cohort"]) == (12, 4)
    assert cell["steps"] == 5 * 4 * 2 * 2  # ditto trains two models
    lines = (undisturbed / "metrics.jsonl").read_text().splitlines()
    rounds = [json.loads(line) for line in lines]
    assert [line["round"] for line in rounds] == [1, 2, 3, 4, 5]
    sent = sum(line["bytes_up"] + line["bytes_down"] for line in rounds)
    assert cell["curve"][-1]["bytes"] == sent
    begun = kept(undisturbed)[0]
    assert begun.dtype == bool
    assert begun.sum() == cell["seen"]
    assert 4 <= cell["seen"] < 12
    page = (undisturbed / "report.html").read_text()
    assert page.count("<img") == 2


def test_an_interrupted_simulation_ends_with_the_same_results(
    cache, undisturbed, tmp_path, monkeypatch
):
    name_left_out = phases.name_left_out

    def break_off(history, *args):
        if len(history) == 3:
            raise KeyboardInterrupt
        name_left_out(history, *args)

    with monkeypatch.context() as patch:
        patch.setattr(phases, "name_left_out", break_off)
        assert simulated(cache, tmp_path / "run") == 130
    assert simulated(cache, tmp_path / "run") == 0
    assert results(tmp_path / "run") == results(undisturbed)
    for mine, theirs in zip(kept(tmp_path / "run"), kept(undisturbed), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for name in ("metrics.jsonl", "config.json"):
        assert (tmp_path / "run" / name).read_text() == (undisturbed / name).read_text()


def test_a_damaged_last_round_is_started_over(cache, undisturbed, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    for name in ("results.json", "cells"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    last = folder / "checkpoints" / "0.1-seed-0" / simulate.NAME / "5"
    for path in last.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:5])
    assert simulated(cache, folder) == 0
    assert "starting over" in capsys.readouterr().err
    assert results(folder) == results(undisturbed)


def test_a_simulation_in_memory_gives_the_same(cache, undisturbed):
    experiment = digits.EXPERIMENT.set(EXPERIMENT_SETTINGS)
    result = run(experiment, Simulate(scored=5), cache=cache, progress=False)
    (mine,) = json.loads(json.dumps(reproducible(result.results["cells"])))
    (theirs,) = results(undisturbed)["cells"]
    assert mine == theirs
    (table,) = result.tables()
    assert table.groups[0].rows[0].texts[0] == "Accuracy %"


def test_the_speed_of_every_round_is_kept_once(undisturbed):
    text = (undisturbed / "speed.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    rounds = [line["round"] for line in lines]
    assert rounds == sorted(set(rounds)) and 1 in rounds
    assert all(line["seconds"] > 0 and line["memory"] > 2**20 for line in lines)


def test_more_clients_than_images_need_a_number_of_examples(capsys, cache, tmp_path):
    settings = {"cells.clients": 2000, "out": tmp_path / "run", "cache": cache}
    assert potara("run", settings) == 2
    assert "set source.examples" in capsys.readouterr().err


def test_scoring_no_clients_is_refused(capsys, cache, tmp_path):
    assert simulated(cache, tmp_path / "run", scored=0) == 2
    assert "scored is 0: it must be 1 or more" in capsys.readouterr().err


def test_a_simulation_starts_from_many_clients_and_few_at_a_time():
    given = preset(digits.EXPERIMENT, Simulate())
    assert (given.cells.clients, given.participation.cohort) == (10_000, "200")
    assert (given.cells.seeds, given.cells.heterogeneity) == ((0,), ("0.1",))
    given.check()
