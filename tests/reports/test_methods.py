from __future__ import annotations

import io

import pytest
from rich.console import Console

from potara_jax.reports import document, methods
from potara_jax.reports.formats import metric_of
from potara_jax.reports.summary import summarise
from tests.reports.records import by_hand
from tests.reports.synthetic import METHODS, as_losses, synthetic

# --- The table -----------------------------------------------------------------------


def cells(results, method):
    """A method's texts by column."""
    table = methods.table(results)
    rows = [row for rows, _ in table.groups for row in rows]
    texts = next(row.texts for row in rows if row.texts[0] == method)
    return dict(zip(table.columns, texts, strict=True))


def test_a_methods_row():
    assert cells(by_hand(), "potara core") == {
        "Method": "potara core",
        "Accuracy %": "83.0 ± 9.9",
        "Gain": "+5.5 ± 6.4",
        "Worst 10 %": "63.0",
        "Weight": "0.50",
        "Bytes up": "1 kB",
        "Bytes down": "2.5 kB",
        "Local steps": "40",
        "Parameters": "64",
        "Training s": "2.5",
    }


def test_a_second_score_has_a_column_where_it_is_known():
    results = by_hand()
    for record in results["methods"]:
        record["balanced_mean"] = record["mean"] - 0.3
    row = cells(results, "potara core")
    assert list(row)[:4] == ["Method", "Accuracy %", "Balanced %", "Gain"]
    assert row["Balanced %"] == "53.0"
    assert methods.BALANCED_EXPLAINED in methods.table(results).notes
    assert methods.BALANCED_EXPLAINED not in methods.table(by_hand()).notes
    del results["methods"][0]["balanced_mean"]
    assert cells(results, "federated")["Balanced %"] == "–"  # noqa: RUF001
    assert cells(results, "local")["Balanced %"] != "–"  # noqa: RUF001


def test_a_row_of_losses():
    results = by_hand()
    results["metric"] = {"name": "loss", "percent": False}
    for record in results["methods"]:
        record["mean"], record["worst_decile"] = record["mean"] - 1, -1.25
    row = cells(results, "potara core")
    assert (row["Loss"], row["Worst 10 %"]) == ("0.170 ± 0.099", "1.25")
    assert row["Gain"] == "+0.0550 ± 0.064"


def test_rows_are_grouped_and_marked():
    table = methods.table(by_hand())
    ((rows, title),) = table.groups
    assert title == "Dirichlet 0.1"
    kinds = {row.texts[0]: row.kind for row in rows}
    assert kinds == {
        "federated": "",
        "local": "",
        "potara core": "best",
        "oracle †": "oracle",
    }
    assert methods.ORACLES in table.notes


def test_without_oracles_none_are_explained():
    results = by_hand()
    results["methods"] = [r for r in results["methods"] if not r["oracle"]]
    text = str(methods.table(results))
    assert methods.ORACLES not in text and methods.DAGGER not in text


def test_without_a_parent_the_gain_is_missing():
    results = by_hand()
    results["methods"] = [r for r in results["methods"] if r["method"] != "local"]
    assert cells(results, "potara core")["Gain"] == "–"  # noqa: RUF001
    assert methods.notes(summarise(results), metric_of(results)) == [methods.ORACLES]


def test_one_seed_has_no_spread():
    table = methods.table(synthetic(seeds=1))
    assert "±" not in "".join(
        t for rows, _ in table.groups for r in rows for t in r.texts
    )
    assert table.title == "Accuracy over clients: one seed"


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_a_terminal_and_is_whole(width):
    console = Console(width=width, record=True, file=io.StringIO())
    for table in methods.brief(synthetic(methods=len(METHODS))):
        console.print(document.terminal(table))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for name in ("Dirichlet 0.1", "one task or transformation per client", *METHODS):
        assert name in text


# --- The report ----------------------------------------------------------------------


def titles(results, folder):
    return [section.title for section in methods.report(results, folder).sections]


def test_the_report_has_every_part(tmp_path):
    results = synthetic(clients=4, seeds=2)
    assert titles(results, tmp_path) == [
        "Methods",
        "Accuracy",
        "Between the local and the federated model",
        "Sensitivity to the damping",
        "Communication",
        "Who holds what",
        "Seconds of each phase",
        "Clients left out",
    ]
    page = document.html(methods.report(results, tmp_path))
    assert page.count("<img") == 5
    assert "client 7 (round 3)" in page


def test_the_figures_that_results_lack_are_left_out(tmp_path):
    results = synthetic(clients=2, seeds=1) | {"diagnostics": []}
    shown = titles(results, tmp_path)
    assert shown == ["Methods", "Accuracy", "Seconds of each phase", "Clients left out"]


def test_the_report_says_whether_the_correction_by_shares_helps(tmp_path):
    results = synthetic(clients=4, heterogeneities=("0.1",), seeds=2)
    assert methods.label_prior(results) == []
    for entry, corrected in zip(results["diagnostics"], (0.5, 1.5), strict=True):
        entry["label_prior"] = {"plain": 1.0, "corrected": corrected, "used": False}
    (sentence,) = methods.label_prior(results)
    assert "from 1.00 to 1.00, lower in 1 of 2 seeds." in sentence
    assert "corrected model in 0 of them" in sentence
    page = document.html(methods.report(results, tmp_path))
    assert sentence.split("'")[0] in page


def test_the_report_of_losses(tmp_path):
    results = as_losses(synthetic(clients=2, seeds=1))
    page = document.html(methods.report(results, tmp_path))
    assert "Accuracy" not in page.replace("accuracy", "Accuracy").split("<details>")[0]


@pytest.mark.parametrize(
    ("epsilon", "said"), [(1.234, "epsilon 1.23 at delta 1e-05"), (None, "no account")]
)
def test_the_report_states_the_privacy(epsilon, said):
    results = synthetic(clients=4, seeds=2)
    assert methods.privacy(results) == []
    results["settings"] |= {
        "communication.privacy_clip": 1.0,
        "communication.privacy_delta": 1e-5,
    }
    results["diagnostics"][0]["epsilon"] = epsilon
    (sentence,) = methods.privacy(results)
    assert said in sentence
    results["settings"]["communication.privacy_noise"] = 0.0  # epsilon is infinite
    assert methods.privacy(results) == [methods.NO_NOISE]
