"""Users' files: an experiment that every job runs, and methods that it can name.

The files are those of the page on adding to the project.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from potara_jax.cli.main import main
from potara_jax.experiment import cell
from potara_jax.jobs import study
from tests.jobs.examples import example, forget_later

pytestmark = pytest.mark.slow

SHORT = (
    "--cells.seeds 0 --training.steps 2 --training.batch-size 4 --federated.rounds 2 "
    "--local.rounds 1 --merging.samples 5 --merging.grid-points 3 --width 4"
)
METHODS = ("A merge weight", "A merge", "A federated algorithm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the experiment's file and its table, and the methods' files."""
    folder = tmp_path_factory.mktemp("user")
    rng = np.random.default_rng(0)
    numbers, classes = rng.normal(size=(90, 3)), rng.integers(0, 2, 90)
    table = np.column_stack([numbers, classes, np.repeat(range(3), 30)])
    header = "acid,sugar,alcohol,class,region"
    np.savetxt(folder / "wine.csv", table, "%g", ",", header=header, comments="")
    (folder / "wine.py").write_text(example("An experiment"))
    for number, heading in enumerate(METHODS):
        (folder / f"method{number}.py").write_text(example(heading))
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    """Run a job on the experiment's file; its results."""
    forget_later(monkeypatch)
    monkeypatch.chdir(folder)

    def run(job: str, *more: str) -> dict:
        out = folder / f"run-{job}"
        places = ["--out", str(out), "--cache", str(folder / "cache")]
        assert main([job, "wine.py", *SHORT.split(), *places, *more]) == 0
        return json.loads((out / "results.json").read_text())

    return run


def test_the_table_has_what_users_registered(run, folder, monkeypatch):
    files = [f"method{number}.py" for number in range(3)]
    more = ("--merging.methods", "uniform", "by_loss", "largest")
    more += ("--data", str(folder / "wine.csv"))
    results = run("run", "--load", *files, *more, "--federated.algorithm", "fedsa")
    rows = {record["method"]: record for record in results["methods"]}
    assert rows["by_loss"]["weighing"] == "by_loss"
    assert rows["largest"]["merge"] == "largest"
    assert len(rows["by_loss"]["accuracy"]) == 3
    assert results["settings"]["file"] == str(folder / "wine.py")
    assert results["settings"]["load"] == [str(folder / file) for file in files]
    assert re.match(r"[0-9a-f]{32}$", results["settings"]["data_digest"])
    out = folder / "run-run"
    assert "wine" in (out / "report.html").read_text()
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert main(["export", str(out), "--clients", "0"]) == 0
    assert (out / "export" / "natural-seed-0" / "client-000").is_dir()


def test_a_study_has_a_users_weight(run, monkeypatch):
    curvature = study._Curvature("empirical", "core", "diagonal")
    monkeypatch.setattr(study, "_CURVATURES", {curvature: (5,)})
    kept = ("by_loss", "grid")
    few = lambda entry, task: entry.name in kept
    monkeypatch.setattr(study, "_has_a_place", few)
    (cell,) = run("study", "--load", "method0.py")["cells"]
    estimators = {estimate["estimator"] for estimate in cell["estimates"]}
    assert estimators == {"uniform", "potara", *kept}
    passes = {e["passes"] for e in cell["estimates"] if e["estimator"] == "by_loss"}
    assert passes == {2 / 3}


def test_step_sizes_are_searched_for_a_users_algorithm(run, folder):
    words = "--algorithms mine --load method2.py --cells.apart-from 1"
    results = run("tune", *words.split())
    assert [trial["algorithm"] for trial in results["trials"]] == ["mine"] * 6
    tuned = json.loads((folder / "run-tune" / "tuned.json").read_text())
    assert set(tuned) == {"mine"}


def test_a_simulation_of_a_users_experiment(run):
    (cell,) = run("simulate", "--participation.cohort", "2", "--scored", "2")["cells"]
    assert (cell["clients"], cell["cohort"]) == (3, 2)
    assert cell["curve"][-1]["round"] == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("acid,class,region\n1,0,0\n2,1,north\n", "line 3: region is 'north'"),
        (None, "missing.csv is not a file"),
    ],
)
def test_a_table_that_the_experiment_cannot_use_is_named(
    folder, tmp_path, monkeypatch, capsys, content, reason
):
    monkeypatch.chdir(folder)
    path = tmp_path / ("a.csv" if content else "missing.csv")
    if content:
        path.write_text(content)
    words = ["run", "wine.py", "--data", str(path), "--out", str(tmp_path / "out")]
    assert main([*words, "--cache", str(tmp_path / "cache")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert reason in error and error.startswith("potara: ")


# --- Mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n", "has no EXPERIMENT = Experiment(...)"),
        ("EXPERIMENT = 3\n", "has no EXPERIMENT = Experiment(...)"),
        ("import missing\n", "line 1: ModuleNotFoundError"),
        ("def (:\n", "line 1: SyntaxError"),
    ],
)
def test_a_file_without_an_experiment_is_refused(text, reason, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(text)
    assert main(["run", str(file)]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


def test_a_file_that_does_not_exist_is_refused(tmp_path, capsys):
    assert main(["run", str(tmp_path / "mine.py")]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("job", ["run", "study", "compare"])
def test_a_users_weight_that_fails_ends_the_job_before_it_trains(
    job, folder, monkeypatch, capsys
):
    forget_later(monkeypatch)
    monkeypatch.chdir(folder)
    wrong = example("A merge weight").replace("Measured(local / (", "(local / (")
    (folder / "wrong.py").write_text(wrong)
    monkeypatch.setattr(cell, "run_phase", lambda *args: pytest.fail("it trains"))
    words = [job, "wine.py", *SHORT.split(), "--out", f"wrong-{job}"]
    assert main([*words, "--cache", "cache", "--load", "wrong.py"]) == 2
    error = capsys.readouterr().err
    assert "weight 'by_loss' of" in error and "wrong.py" in error
    assert "return Measured(weight)" in error and error.count("\n") == 1
