"""Several studies in one table and one figure."""

import json

import numpy as np
import pytest

from benchmarks import studies
from tests.reports.test_study import cell, estimate, potara, results


def folder(path, *cells):
    """A run folder of a finished study."""
    path.mkdir()
    (path / "results.json").write_text(json.dumps(results(*cells)))
    return path


@pytest.fixture
def two(tmp_path):
    """A study of two seeds with classes, and one without, whose default is better."""
    known = {"fisher": "empirical", "balanced": 0.5}
    estimates = [
        estimate("tempered_bayes", 0.70, number=5, balanced=0.6),
        estimate("tempered_bayes", 0.78, balanced=0.62),
        estimate("grid", 0.75, balanced=0.61),
        potara(0.3, 0.72, samples="train") | known,
        potara(1.0, 0.79, samples="train") | known,
    ]
    balanced = {"balanced": {"best_constant": 0.65}}
    cells = [cell("0.1", seed, estimates) | balanced for seed in (0, 1)]
    other = cell("tasks", 0, [estimate("tempered_bayes", 0.9)], local=0.95)
    return {
        "classes": studies.read(folder(tmp_path / "a", *cells)),
        "tasks": studies.read(folder(tmp_path / "b", other)),
    }


def tables(text):
    """The cells of Markdown tables, by title, row and column."""
    found = {}
    for block in text.strip().split("\n\n"):
        head, _, *rows = (line.strip("| ").split(" | ") for line in block.split("\n"))
        found[head[0]] = {row[0]: dict(zip(head, row, strict=False)) for row in rows}
    return found


def test_the_tables_have_the_regret_of_the_default_and_of_others(two):
    found = tables("\n".join(studies.lines(two)))
    row = found["regret"]["classes"]
    assert (row["5"], row["30"], row["grid"]) == ("−10.0", "−2.0", "−5.0")  # noqa: RUF001
    assert row["Potara, training samples"] == "−8.0"  # noqa: RUF001
    assert row["least gain"] == "18.0"
    assert found["regret"]["tasks"]["30"] == "10.0"
    assert found["regret"]["mean"]["30"] == "4.0"
    assert found["balanced regret"]["classes"]["grid"] == "−4.0"  # noqa: RUF001
    assert found["balanced regret"]["mean"]["30"] == "−3.0"  # noqa: RUF001


def test_the_figure_has_a_panel_for_each_score(two):
    figure = studies.draw(two)
    plain, balanced = figure.axes
    marks = lambda axes: [x for x in axes.lines if x.get_marker() == "o"]
    given = [[float(x.get_xdata()[0]) for x in marks(axes)] for axes in figure.axes]
    np.testing.assert_allclose(given, [[-2, 10], [-3, np.nan]])
    assert [x.get_text() for x in plain.get_yticklabels()] == ["classes", "tasks"]
    assert balanced.get_xlabel() == "balanced regret, in points"


def test_the_command_prints_and_draws_and_refuses_what_is_no_study(tmp_path, capsys):
    path = folder(tmp_path / "a", cell("1", 0, [estimate("tempered_bayes", 0.7)]))
    assert studies.main([f"one={path}", "--out", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert "| one |" in capsys.readouterr().out
    assert studies.main([f"one={tmp_path / 'nothing'}"]) == 2
    assert "holds no finished study" in capsys.readouterr().err
