import csv
import io

import pytest

from potara_jax.reports import clients
from potara_jax.reports.clients import clients_csv
from tests.reports.records import by_hand, record
from tests.reports.synthetic import as_losses


def client_lines(results):
    return list(csv.DictReader(io.StringIO(clients_csv(results))))


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


def test_classes_have_a_second_score():
    results = by_hand()
    for each in results["methods"]:
        each |= {"balanced": [0.25, 0.5]}
    heads = clients_csv(results).splitlines()[0]
    assert "client,accuracy,balanced,loss,weight" in heads
    assert [line["balanced"] for line in client_lines(results)[:2]] == ["0.25", "0.5"]
    assert "balanced" not in clients_csv(by_hand())


def sure(results):
    for each in results["methods"]:
        if each["method"] == "potara core":
            each |= {"interval": [[0.1, 0.2], [0.5, 0.9]], "gains": [True, False]}
    return results


def test_certainty_has_columns_where_a_method_says_it():
    lines = client_lines(sure(by_hand()))
    certain = [line for line in lines if line["method"] == "potara core"]
    values = [(line["low"], line["high"], line["gains"]) for line in certain[:2]]
    assert values == [("0.1", "0.5", "True"), ("0.2", "0.9", "False")]
    assert {line["low"] for line in lines if line["method"] == "local"} == {""}
    assert "low" not in client_lines(by_hand())[0]


def test_the_clients_of_the_first_seed_have_a_table():
    (section,) = clients.sections(sure(by_hand()))
    shown = section.parts[0]
    assert shown.columns == (
        *("Client", "Name", "Examples", "federated", "local", "potara core"),
        *("Weight", "Interval", "Gains"),
    )
    ((rows, title),) = shown.groups
    assert title == "Dirichlet 0.1"
    texts = [row.texts for row in rows]
    assert texts[0][3:] == ["70.0", "60.0", "80.0", "0.30", "0.10 to 0.50", "yes"]
    assert texts[1][2:] == [
        "20",
        *("90.0", "80.0", "100.0"),
        "0.50",
        "0.20 to 0.90",
        "unsure",
    ]
    assert clients.sections(by_hand()) == []


@pytest.mark.parametrize("gains", [True, False])
def test_of_two_sure_methods_one_that_knows_who_gains_is_shown(gains):
    results = sure(by_hand())
    for each in results["methods"]:
        if each["method"] == "potara core" and not gains:
            del each["gains"]
        if each["method"] == "local":
            each |= {"interval": [[0.0, 0.0], [1.0, 1.0]], "weights": [0.5, 0.5]}
    names = [r["method"] for r in results["methods"] if "interval" in r]
    (section,) = clients.sections(results)
    chosen = "potara core" if gains else names[-1]
    assert section.parts[0].columns[5] == chosen
    assert ("Gains:" in section.parts[1].text) == gains


def test_a_long_table_of_clients_says_where_the_others_are(monkeypatch):
    monkeypatch.setattr(clients, "_MOST", 1)
    shown = clients.table(sure(by_hand()), "potara core")
    assert [len(rows) for rows, _ in shown.groups] == [1]
    assert "clients.csv" in shown.notes[0]


def test_unknown_values_of_a_client_are_empty():
    results = {"methods": [record("a, b", 0, 0.5)], "diagnostics": []}
    line = client_lines(results)[0]
    assert (line["method"], line["weight"], line["examples"]) == ("a, b", "", "")


def test_clients_are_named_after_themselves_or_their_class():
    results = by_hand()
    held = {"kind": "task", "names": ["sum", "sort"], "clients": []}
    entry = {"proportions": [[0.2, 0.8], [1.0, 0.0]], "held": held}
    for each in results["diagnostics"]:
        each |= entry
    assert [line["name"] for line in client_lines(results)[:2]] == ["sort", "sum"]
    for each in results["diagnostics"]:
        each["held"] = held | {"clients": ["ann", "bob"]}
    assert [line["name"] for line in client_lines(results)[:2]] == ["ann", "bob"]


def test_a_loss_has_one_column():
    results = as_losses(by_hand())
    heads = clients_csv(results).splitlines()[0]
    assert heads == "method,heterogeneity,seed,client,loss,weight,examples,name"
    assert [line["loss"] for line in client_lines(results)[:2]] == ["1.0", "0.5"]
