from __future__ import annotations

from potara_jax.reports import diagnostics, methods
from tests.reports.synthetic import synthetic


def test_certainty_is_in_shares_of_clients():
    results = synthetic(clients=2, heterogeneities=("0.1",), seeds=1)
    entry = results["diagnostics"][0]
    entry["segment"]["barrier"] = [0.0, 0.1]
    entry["certainty"] = {
        "moves_in_a_decade": [0.2, 0.3],
        "low": [0.1, 0.2],
        "high": [0.3, 0.6],
    }
    ((rows, _),) = diagnostics.certainty(results).groups
    assert [row.texts for row in rows] == [["Dirichlet 0.1", "100 %", "50 %", "0.30"]]


def test_clients_left_out_are_listed_by_run():
    results = synthetic(heterogeneities=("0.1",), seeds=1)
    entry, left_out = results["diagnostics"][0], []
    for number, client in [(1, 7), (4, 7), (2, 3)]:
        left_out.append({"phase": "local", "round": number, "client": client})
    entry["left_out"] = left_out
    ((rows, _),) = diagnostics.left_out(results).groups
    assert [row.texts for row in rows] == [
        [
            *("Dirichlet 0.1", "0", "local"),
            "client 7 (2 rounds, from 1 on), client 3 (round 2)",
        ]
    ]
    entry["left_out"] = []
    assert diagnostics.left_out(results).text == "None: every update was finite."


def test_a_line_names_the_clients_that_were_left_out():
    results = synthetic(heterogeneities=("0.1", "tasks"), seeds=1)
    first, second = results["diagnostics"]
    first["left_out"] = second["left_out"] = []
    assert diagnostics.left_out_notes(results) == []
    of = lambda *clients: [{"phase": "x", "round": 1, "client": c} for c in clients]
    first["left_out"], second["left_out"] = of(7, 7), of(3)
    start = "Left out of rounds with an update that is not finite: "
    third = "client 3 (one task or transformation per client, seed 0)"
    line = f"client 7 (Dirichlet 0.1, seed 0), {third}"
    assert diagnostics.left_out_notes(results) == [f"{start}{line}."]
    for table in (methods.table(results), *methods.brief(results)):
        assert f"{start}{line}." in table.notes
    second["left_out"] = of(*range(6))
    (line,) = diagnostics.left_out_notes(results)
    assert line.endswith(f"{third}, and 2 more.")


def test_seconds_are_means_over_seeds():
    results = synthetic(heterogeneities=("0.1",), seeds=2)
    for entry, spent in zip(results["diagnostics"], (10.0, 20.0), strict=True):
        entry["seconds"] = {"base": 1.0, "merge": spent}
    table = diagnostics.seconds(results)
    assert table.columns == ("Heterogeneity", "base", "merge", "total")
    ((rows, _),) = table.groups
    assert [row.texts for row in rows] == [["Dirichlet 0.1", "1.0", "15.0", "16.0"]]
