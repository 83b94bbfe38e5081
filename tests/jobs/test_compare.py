"""A comparison as its user has it, on a federation of four."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from potara_jax.federated.registry import ALGORITHMS, load_all
from potara_jax.jobs import run
from potara_jax.jobs.compare import CompareDigits, names, number_of_rounds
from potara_jax.reports import comparison

ROOT = Path(__file__).parents[2]
TINY = {
    "seeds": 3,
    "heterogeneity": 0.5,
    "clients": 4,
    "federated-rounds": 4,
    "local-rounds": 2,
    "local-steps": 2,
    "samples": 4,
    "grid-points": 3,
    "base-steps": 3,
    "depth": 1,
    "targets": "query",
    "rank": 2,
    "newcomers": 0.25,
}
MINE = "mine"


def example() -> str:
    """The algorithm of the README's page on adding one."""
    text = (ROOT / "README.md").read_text()
    page = text[text.index("## Add an algorithm") :]
    return re.search(r"```python\n(.*?)```", page, re.S).group(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    (folder / "mine.py").write_text(example())
    words = [word for k, v in TINY.items() for word in (f"--{k}", str(v))]
    words += ["--algorithms", "fedsa", "fdlora", "flora", MINE]
    words += ["--load", str(folder / "mine.py")]
    words += ["--out", str(folder / "run"), "--cache", str(folder / "cache")]
    words += ["--merges", "uniform", "lorahub"]
    assert run.main(["compare", "digits", *words]) == 0
    results = json.loads((folder / "run/results.json").read_text())
    ALGORITHMS.pop(MINE)
    return folder / "run", results


def rows(results) -> dict:
    return {record["method"]: record for record in results["methods"]}


def test_an_algorithm_of_ones_own_is_in_the_table(finished):
    _, results = finished
    record = rows(results)[MINE]
    assert 0 < record["mean"] < 1 and len(record["curve"]) == 6
    lines = [line for line in example().splitlines() if line.strip()]
    assert len(lines) <= 40


def test_every_row_is_there_once(finished):
    found = [record["method"] for record in finished[1]["methods"]]
    expected = {"base", "federated", "local", "federated + fine-tuning", "fedsa"}
    expected |= {
        "local, 2 rounds",
        "federated, rank 2r",
        "local, rank 2r",
        "feddpa_f",
        "fdlora + fusion",
    }
    expected |= {"potara core", "potara core (fedsa)", "hermite_bayes (mine)"}
    assert expected <= set(found)
    assert len(set(found)) == len(found)
    assert "potara core (flora)" not in found, "its base is another one"


def test_budgets_are_kept_where_they_can_be(finished):
    _, results = finished
    budget = rows(results)["potara core"]
    most = budget["bytes_up"] + budget["bytes_down"]
    for record in results["methods"]:
        spent = record["bytes_up"] + record["bytes_down"]
        fits = spent <= most and record["local_steps"] <= budget["local_steps"]
        assert record["over"] == (not fits)
        assert (record["equal_bytes"] is None) <= (spent > most)


def test_a_row_is_its_curve_at_the_last_round_within_the_budget(finished):
    _, results = finished
    budget = rows(results)["potara core"]
    most = budget["bytes_up"] + budget["bytes_down"]
    record = rows(results)["fedsa"]
    fit = [
        p
        for p in record["curve"]
        if p["bytes"] <= most and p["steps"] <= budget["local_steps"]
    ]
    assert record["mean"] == fit[-1]["mean"]
    assert record["bytes_up"] + record["bytes_down"] == fit[-1]["bytes"]
    steps = [p for p in record["curve"] if p["steps"] <= budget["local_steps"]]
    assert record["equal_steps"] == steps[-1]["mean"]


def test_newcomers_are_scored_apart(finished):
    _, results = finished
    for record in results["methods"]:
        assert record["newcomers"] == pytest.approx(record["accuracy"][3])
        assert record["mean"] == pytest.approx(np.mean(record["accuracy"][:3]))
    curve = (json.loads(line) for line in (finished[0] / "metrics.jsonl").open())
    joined = [r for r in curve if r["phase"] == "fedsa, newcomers"]
    assert len(joined) == TINY["local-rounds"]


def test_a_comparison_leaves_a_table_figures_and_a_page(finished):
    folder, results = finished
    assert {p.name for p in (folder / "figures").iterdir()} == {
        "accuracy.png",
        "bytes.png",
        "parents.png",
        "clients.png",
    }
    page = (folder / "report.html").read_text()
    assert page.count("<img") == 4 and MINE in page
    lines = [line for line in comparison.ranked(results) if not line.row.oracle]
    means = [line.row.mean for line in lines]
    assert means == sorted(means, reverse=True)


def test_rounds_are_counted_for_the_display(finished):
    settings = CompareDigits(
        federated_rounds=4,
        local_rounds=2,
        newcomers=0.25,
        algorithms=("fedsa", "fdlora", "flora", "ffa"),
    )
    lines = [json.loads(x) for x in (finished[0] / "metrics.jsonl").open()]
    nobody = settings.local_rounds  # joins flora: its model is common to all
    assert len(lines) + nobody == number_of_rounds(settings)


def test_an_unknown_algorithm_is_refused(tmp_path, capsys):
    words = ["compare", "digits", "--algorithms", "fedx", "--out", str(tmp_path / "x")]
    assert run.main(words) == 2
    assert "--algorithms is fedx: it must be of" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["raise ValueError('no')", "syntax error"])
def test_a_file_that_cannot_be_loaded_is_refused(tmp_path, capsys, text):
    file = tmp_path / "broken.py"
    file.write_text(text)
    words = ["digits", "--load", str(file), "--out", str(tmp_path / "x")]
    assert run.main(words) == 2
    assert "broken.py cannot be imported" in capsys.readouterr().err


def test_all_algorithms_are_compared_by_default():
    settings = CompareDigits()
    assert set(names(settings)) == set(load_all()) - {"local", "fedit"}
