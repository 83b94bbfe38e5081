import csv
import io

import pytest

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
