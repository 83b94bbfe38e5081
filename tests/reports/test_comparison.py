import numpy as np
import pytest

from potara_jax.reports import comparison
from tests.evaluation import synthetic


def results(**options) -> dict:
    """Invented results of a comparison."""
    made = synthetic(clients=4, methods=16, **options)
    for place, record in enumerate(made["methods"]):
        sent = record["bytes_up"] + record["bytes_down"]
        late = record["method"] in ("potara core", "FedIT + fine-tuning")
        record |= {
            "equal_bytes": record["mean"] if place % 3 else None,
            "equal_steps": record["mean"],
            "over": record["method"] == "Ditto",
            "personal": record["method"] in ("FedAMP", "local"),
            "newcomers": None,
            "kind": _KINDS.get(record["method"], "algorithm"),
            "curve": [] if late else [_point(n, sent, record) for n in (1, 2, 3)],
        }
    made["settings"]["federated_rounds"] = 2
    made["privacy"] = {"fedit": 1.234, "fedex": None}
    return made


_KINDS = {
    "potara core": "merge",
    "Hermite": "merge",
    "average": "merge",
    "oracle grid": "bound",
    "FedIT + fine-tuning": "pipeline",
}


def exchanged(**options) -> dict:
    """Results with Potara on another parent."""
    made = results(**options)
    for record in list(made["methods"]):
        if record["method"] == "FedPer":
            twin = {"method": "hermite (FedPer)", "kind": "exchanged", "curve": []}
            made["methods"].append(record | twin | {"mean": 0.99})
    return made


def _point(number, sent, record) -> dict:
    return {
        "round": number,
        "bytes": sent * number // 3,
        "steps": 100 * number,
        "mean": record["mean"] * number / 3,
    }


def test_the_most_accurate_is_first_at_every_heterogeneity():
    lines = comparison.ranked(results())
    for name in ("0.1", "tasks"):
        means = [x.row.mean for x in lines if x.row.heterogeneity == name]
        assert means == sorted(means, reverse=True) and len(means) == 16
    assert [x.row.heterogeneity for x in lines] == ["0.1"] * 16 + ["tasks"] * 16


def test_what_is_over_or_missing_is_marked():
    lines = {line.row.method: line for line in comparison.ranked(results())}
    text = comparison.texts(lines["Ditto"])
    assert text["Method"] == "Ditto *"
    given = results()
    given["methods"][0]["equal_bytes"] = None
    name = given["methods"][0]["method"]
    line = next(x for x in comparison.ranked(given) if x.row.method == name)
    assert comparison.texts(line)["At its bytes"] == "–"  # noqa: RUF001


def test_newcomers_have_a_column_where_there_are_any():
    assert "Newcomers %" not in _heads(results())
    given = results()
    for record in given["methods"]:
        record["newcomers"] = 0.5
    assert "Newcomers %" in _heads(given)


def _heads(given) -> tuple:
    return comparison.columns(comparison.ranked(given), comparison.COLUMNS)


def test_the_best_that_keeps_to_the_budget_is_bold():
    given = results(heterogeneities=("0.1",), seeds=1)
    table = comparison.terminal_table(given)
    lines = comparison.ranked(given)
    fair = next(x for x in lines if not x.row.oracle and not x.over)
    bold = [
        str(cell)
        for cell in table.columns[0].cells
        if "bold" in str(getattr(cell, "style", ""))
    ]
    assert bold == [comparison.texts(fair)["Method"]]


def test_curves_are_means_over_seeds_in_megabytes():
    given = results(heterogeneities=("0.1",), seeds=2)
    paths = comparison._paths(given, "0.1")
    own = [r for r in given["methods"] if r["method"] == "FedPer"]
    sent, reached, _ = paths["FedPer"]
    mean = np.mean([[p["mean"] for p in r["curve"]] for r in own], 0)
    np.testing.assert_allclose(reached, 100 * mean)
    assert sent[0] == pytest.approx(own[0]["curve"][0]["bytes"] / 1e6)
    assert {"potara core", "federated", "FedAMP"} <= set(paths)
    assert not {"local", "base model"} & set(paths), "they send nothing"
    colours = {name: path[2] for name, path in paths.items()}
    assert colours["FedAMP"] != colours["federated"] != colours["potara core"]


def test_the_page_has_everything(tmp_path):
    given = exchanged()
    given["settings"] |= {"privacy_clip": 0.5, "privacy_delta": 1e-5}
    drawn = comparison.draw(given, tmp_path)
    assert [path.stem for path in drawn] == ["accuracy", "bytes", "parents", "clients"]
    page = comparison.render(given, drawn)
    assert page.count("<img") == 4
    assert "fedit: epsilon 1.23 at delta 1e-05." in page
    assert "the clients&#x27; sum): fedex." in page


def test_without_privacy_nothing_is_said_of_it(tmp_path):
    assert comparison.privacy(results()) == []


def test_the_accuracy_figure_is_in_the_order_of_the_table_without_other_merges():
    given = exchanged(heterogeneities=("0.1",))
    (axes,) = comparison.accuracy(given).axes
    shown = [text.get_text() for text in axes.get_yticklabels()]
    table = [comparison.texts(x)["Method"] for x in comparison.ranked(given)]
    table = [name.removesuffix(" †") for name in table]
    assert shown == [n for n in table if n not in ("average", "hermite (FedPer)")]


def test_what_a_merge_makes_of_an_algorithm_stands_beside_it():
    given = exchanged(heterogeneities=("0.1",))
    own = [r["mean"] for r in given["methods"] if r["method"] == "FedPer"]
    found = comparison._parents(given, "0.1")
    assert found["hermite"] == {"FedPer": pytest.approx(0.99)}
    assert found["alone"] == {"FedPer": pytest.approx(np.mean(own) * 2 / 3)}
    assert comparison.by_parent(results()) is None
