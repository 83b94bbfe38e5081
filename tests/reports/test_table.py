from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from potara_jax.reports import table
from tests.evaluation import METHODS, synthetic

PARENTS = table.PARENTS


def record(method, seed, mean, *, weights=None, oracle=False, heterogeneity="0.1"):
    return {
        "method": method,
        "oracle": oracle,
        "heterogeneity": heterogeneity,
        "seed": seed,
        "mean": mean,
        "worst_decile": mean - 0.2,
        "accuracy": [mean - 0.1, mean + 0.1],
        "loss": [1.0, 0.5],
        "weights": weights,
        "bytes_up": 1000,
        "bytes_down": 2000 + 1000 * seed,
        "local_steps": 40,
        "inference_parameters": 64,
        "seconds": 2.0 + seed,
    }


def by_hand():
    """Two seeds: federated is the better parent in the first, local in the second."""
    modules = {"q": [0.2, 0.4], "v": [0.4, 0.6]}
    methods = [
        *(record(PARENTS[0], 0, 0.80), record(PARENTS[0], 1, 0.60)),
        *(record(PARENTS[1], 0, 0.70), record(PARENTS[1], 1, 0.75)),
        record("potara core", 0, 0.90, weights=modules),
        record("potara core", 1, 0.76, weights=[0.5, 0.7]),
        *(
            record("oracle", 0, 0.95, oracle=True),
            record("oracle", 1, 0.95, oracle=True),
        ),
    ]
    diagnostics = [
        {"heterogeneity": "0.1", "seed": seed, "counts": [10 + seed, 20]}
        for seed in (0, 1)
    ]
    return {"methods": methods, "diagnostics": diagnostics}


def rows_by_method(results):
    return {row.method: row for row in table.summarise(results)}


def shown(results, *, width=80, styles=False):
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True)
    console.print(table.terminal_table(table.summarise(results)))
    return console.export_text(styles=styles)


# --- Aggregation ---------------------------------------------------------------------


def test_means_and_sample_deviations_over_seeds():
    row = rows_by_method(by_hand())["potara core"]
    assert row.seeds == 2
    assert row.mean == pytest.approx(0.83)
    assert row.spread == pytest.approx(0.14 / 2**0.5)
    assert row.worst_decile == pytest.approx(0.63)
    assert (row.bytes_up, row.bytes_down) == (1000, 2500)
    assert (row.local_steps, row.inference_parameters) == (40, 64)
    assert row.seconds == 2.5


def test_the_gain_is_paired_with_each_seeds_better_parent():
    rows = rows_by_method(by_hand())
    assert rows["potara core"].gain == pytest.approx((0.10 + 0.01) / 2)
    assert rows["potara core"].gain_spread == pytest.approx(0.09 / 2**0.5)
    assert rows[PARENTS[0]].gain == pytest.approx((0.0 - 0.15) / 2)


@pytest.mark.parametrize("missing", PARENTS)
def test_without_a_parent_there_is_no_gain(missing):
    results = by_hand()
    results["methods"] = [r for r in results["methods"] if r["method"] != missing]
    row = rows_by_method(results)["potara core"]
    assert row.gain is None
    assert row.gain_spread is None
    assert table.cells(row)["Gain"] == "–"  # noqa: RUF001


def test_a_seed_without_both_parents_does_not_count_in_the_gain():
    results = by_hand()
    del results["methods"][1]
    row = rows_by_method(results)["potara core"]
    assert row.seeds == 2
    assert row.gain == pytest.approx(0.10)


def test_the_weight_is_the_mean_over_modules_clients_and_seeds():
    rows = rows_by_method(by_hand())
    assert rows["potara core"].weight == pytest.approx((0.4 + 0.6) / 2)
    assert rows["oracle"].weight is None


def test_one_seed_has_no_spread():
    rows = table.summarise(synthetic(seeds=1))
    assert {row.spread for row in rows} == {0.0}
    assert "±" not in "".join("".join(table.cells(row).values()) for row in rows)
    assert "one seed" in shown(synthetic(seeds=1))


def test_rows_keep_the_order_of_presentation():
    rows = table.summarise(synthetic(methods=5))
    expected = [(h, m) for h in ("0.1", "tasks") for m in METHODS[:5]]
    assert [(row.heterogeneity, row.method) for row in rows] == expected


def test_the_best_is_no_oracle_and_a_draw_has_two():
    results = by_hand()
    assert [r.method for r in table.best(table.summarise(results))] == ["potara core"]
    results["methods"] += [record("twin", 0, 0.90), record("twin", 1, 0.76)]
    winners = table.best(table.summarise(results))
    assert [row.method for row in winners] == ["potara core", "twin"]


# --- Text ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heterogeneity", "text"),
    [("0.1", "Dirichlet 0.1"), ("1.0", "Dirichlet 1"), ("tasks", "one task a client")],
)
def test_labels(heterogeneity, text):
    assert table.label(heterogeneity) == text


def test_an_unknown_heterogeneity_keeps_its_name():
    assert table.label("by writer") == "by writer"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1 kB"), (12_345, "12.3 kB")),
        *((999_600, "1 MB"), (32_457_280, "32.5 MB"), (5e12, "5000 GB")),
    ],
)
def test_sizes(number, text):
    assert table.size(number) == text


def test_points_have_a_sign_and_zero_is_not_negative():
    texts = [table.points(x) for x in (0.013, -0.013, -0.0001)]
    assert texts == ["+1.3", "−1.3", "+0.0"]  # noqa: RUF001


# --- Tables --------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_table_fits_and_is_whole(width):
    results = synthetic(methods=len(METHODS))
    text = shown(results, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for name in ("Dirichlet 0.1", "one task a client", *METHODS):
        assert name in text


def test_the_terminal_marks_oracles_and_the_best():
    text = shown(by_hand(), styles=True)
    assert "\x1b[2moracle †" in text
    bold = [name for name in rows_by_method(by_hand()) if f"\x1b[1m{name}" in text]
    assert bold == ["potara core"]
    assert table.ORACLES in shown(by_hand())


def test_without_oracles_there_is_no_dagger():
    results = by_hand()
    results["methods"] = [r for r in results["methods"] if not r["oracle"]]
    assert table.DAGGER not in shown(results)
    assert table.DAGGER not in table.markdown_table(table.summarise(results))


def test_names_are_no_markup():
    results = by_hand()
    results["methods"].append(record("[red]x[/red]", 0, 0.5))
    assert "[red]x[/red]" in shown(results)


def test_markdown():
    lines = table.markdown_table(table.summarise(by_hand())).splitlines()
    assert lines[0].startswith("**Dirichlet 0.1**")
    assert lines[2].split(" | ")[0] == "| Method"
    assert [line for line in lines if line.startswith("| **")] == [
        "| **potara core** | **83.0 ± 9.9** | +5.5 ± 6.4 | 63.0 | 0.50 "
        "| 1 kB | 2.5 kB | 40 | 64 | 2.5 |"
    ]
    assert any(line.startswith("| oracle † | 95.0 ± 0.0 |") for line in lines)
    assert lines[-1] == table.ORACLES


def test_markdown_escapes_a_column_separator():
    results = {"methods": [record("a|b", 0, 0.5)], "diagnostics": []}
    assert r"a\|b" in table.markdown_table(table.summarise(results))


# --- Every client --------------------------------------------------------------------


def client_lines(results):
    return list(csv.DictReader(io.StringIO(table.clients_csv(results))))


def test_a_line_for_every_client():
    lines = client_lines(by_hand())
    assert len(lines) == 8 * 2
    merged = [line for line in lines if line["method"] == "potara core"]
    assert [(line["seed"], line["client"]) for line in merged] == [
        *(("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"))
    ]
    weights = [float(line["weight"]) for line in merged]
    assert weights == pytest.approx([0.3, 0.5, 0.5, 0.7])
    assert [line["examples"] for line in merged] == ["10", "20", "11", "20"]
    assert [float(line["accuracy"]) for line in merged[:2]] == pytest.approx([0.8, 1.0])
    assert [line["loss"] for line in merged[:2]] == ["1.0", "0.5"]


def test_what_is_unknown_of_a_client_is_empty():
    results = {"methods": [record("a, b", 0, 0.5)], "diagnostics": []}
    line = client_lines(results)[0]
    assert (line["method"], line["weight"], line["examples"]) == ("a, b", "", "")


def test_clients_have_the_names_of_their_own_or_of_what_they_hold():
    results = by_hand()
    held = {"kind": "task", "names": ["sum", "sort"], "clients": []}
    entry = {"proportions": [[0.2, 0.8], [1.0, 0.0]], "held": held}
    for each in results["diagnostics"]:
        each |= entry
    assert [line["name"] for line in client_lines(results)[:2]] == ["sort", "sum"]
    for each in results["diagnostics"]:
        each["held"] = held | {"clients": ["ann", "bob"]}
    assert [line["name"] for line in client_lines(results)[:2]] == ["ann", "bob"]
