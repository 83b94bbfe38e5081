import itertools

import matplotlib.text
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from potara_jax.reports import comparison, document
from potara_jax.reports.figures import comparison as figures
from potara_jax.reports.formats import metric_of
from tests.reports.synthetic import as_losses, synthetic


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
    made["settings"]["federated.rounds"] = 2
    made["privacy"] = {"fedit": 1.234, "fedex": None}
    return made


_KINDS = {
    "potara core": "merge",
    "Hermite": "merge",
    "average": "merge",
    "oracle grid": "bound",
    "FedIT + fine-tuning": "pipeline",
}


MERGED = "hermite on FedPer's model"


def exchanged(**options) -> dict:
    """Results with Potara on another parent."""
    made = results(**options)
    for record in list(made["methods"]):
        if record["method"] == "FedPer":
            twin = {"method": MERGED, "kind": "exchanged", "curve": []}
            twin |= {"weighing": "hermite", "parent": "FedPer"}
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
    lines = comparison.entries(results())
    for name in ("0.1", "tasks"):
        means = [x.summary.mean for x in lines if x.summary.heterogeneity == name]
        assert means == sorted(means, reverse=True) and len(means) == 16
    assert [x.summary.heterogeneity for x in lines] == ["0.1"] * 16 + ["tasks"] * 16


def rows(given) -> dict:
    """Every row's texts by column, by its first cell, and its kind."""
    table = comparison.table(given)
    lines = [row for group, _ in table.groups for row in group]
    return {
        row.texts[0]: dict(zip(table.columns, row.texts, strict=True))
        | {"kind": row.kind}
        for row in lines
    }


def test_what_is_over_or_missing_is_marked():
    given = results()
    assert "Ditto *" in rows(given)
    given["methods"][0]["equal_bytes"] = None
    name = given["methods"][0]["method"]
    assert rows(given)[name]["At its bytes"] == "–"  # noqa: RUF001
    assert comparison.OVER in comparison.table(given).notes


def test_newcomers_have_a_column_if_there_are_any():
    given = results()
    assert "Newcomers %" not in comparison.table(given).columns
    for record in given["methods"]:
        record["newcomers"] = 0.5
    assert {row["Newcomers %"] for row in rows(given).values()} == {"50.0"}


def test_the_best_within_the_budget_is_marked():
    given = results(heterogeneities=("0.1",), seeds=1)
    lines = comparison.entries(given)
    fair = next(x for x in lines if not x.summary.oracle and not x.over)
    marked = [name for name, row in rows(given).items() if row["kind"] == "best"]
    assert marked == [fair.summary.method]


def test_curves_are_means_over_seeds_in_megabytes():
    given = results(heterogeneities=("0.1",), seeds=2)
    paths = figures.paths(given, "0.1")
    personal = [r for r in given["methods"] if r["method"] == "FedPer"]
    sent, reached, _ = paths["FedPer"]
    mean = np.mean([[p["mean"] for p in r["curve"]] for r in personal], 0)
    np.testing.assert_allclose(reached, 100 * mean)
    assert sent[0] == pytest.approx(personal[0]["curve"][0]["bytes"] / 1e6)
    assert {"potara core", "federated", "FedAMP"} <= set(paths)
    assert not {"local", "base model"} & set(paths), "they send nothing"
    colours = {name: path[2] for name, path in paths.items()}
    assert colours["FedAMP"] != colours["federated"] != colours["potara core"]


def test_the_report_has_everything(tmp_path):
    given = exchanged()
    given["settings"] |= {
        "communication.privacy_clip": 0.5,
        "communication.privacy_delta": 1e-5,
    }
    page = document.html(comparison.report(given, tmp_path))
    stems = {path.stem for path in tmp_path.iterdir()}
    assert stems == {"accuracy", "bytes", "parents", "clients"}
    assert page.count("<img") == 4
    assert "fedit: epsilon 1.23 at delta 1e-05." in page
    assert "the clients&#39; sum: fedex." in page


def test_without_privacy_it_is_not_mentioned():
    assert comparison.privacy(results()) == []


def test_losses_are_shown_as_they_are(tmp_path):
    given = as_losses(exchanged(heterogeneities=("0.1",)))
    assert metric_of(given).column in comparison.table(given).columns
    path = figures.paths(given, "0.1")["FedPer"]
    curves = [r["curve"] for r in given["methods"] if r["method"] == "FedPer"]
    expected = -np.mean([[point["mean"] for point in curve] for curve in curves], 0)
    np.testing.assert_allclose(path.scores, expected)
    comparison.report(given, tmp_path)
    assert (tmp_path / "loss.png").exists()


def test_the_accuracy_figure_is_in_the_order_of_the_table_without_other_merges():
    given = exchanged(heterogeneities=("0.1",))
    (axes,) = figures.draw_scores(given).axes
    shown = [text.get_text() for text in axes.get_yticklabels()]
    table = [name.removesuffix(" †") for name in rows(given)]
    assert shown == [n for n in table if n not in ("average", MERGED)]


def test_a_merge_stands_beside_the_algorithm_that_it_merges():
    given = exchanged(heterogeneities=("0.1",))
    personal = [r["mean"] for r in given["methods"] if r["method"] == "FedPer"]
    means = figures.parents(given, "0.1")
    assert means["hermite"] == {"FedPer": pytest.approx(0.99)}
    assert means["alone"] == {"FedPer": pytest.approx(np.mean(personal) * 2 / 3)}
    assert figures.draw_parents(results()) is None


@pytest.mark.parametrize(
    ("heights", "places"),
    [
        ([0.9, 0.5, 0.1], [0.9, 0.5, 0.1]),
        ([0.5, 0.5, 0.1], [0.55, 0.45, 0.1]),
        ([0.6, 0.5, 0.5, 0.5], [0.675, 0.575, 0.475, 0.375]),
        ([1.0, 1.0, 0.0, 0.0], [1.0, 0.9, 0.1, 0.0]),
        ([], []),
    ],
)
def test_names_are_as_near_to_their_lines_ends_as_a_gap_allows(heights, places):
    assert figures.apart(heights, gap=0.1) == pytest.approx(places)


def test_names_share_the_panel_where_it_is_too_low_for_all():
    places = figures.apart([0.5] * 21, gap=0.1)
    np.testing.assert_allclose(places, np.linspace(1, 0, 21), atol=1e-12)


def test_the_names_of_lines_are_not_over_each_other():
    figure = figures.draw_bytes(results(heterogeneities=("0.1",), seeds=1))
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    names = figure.axes[0].texts
    boxes = [matplotlib.text.Text.get_window_extent(name, renderer) for name in names]
    assert len(boxes) == 13
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def diverged(records) -> dict:
    made = exchanged(heterogeneities=("0.1",), seeds=1)
    chosen = [r for r in made["methods"] if r["method"] in records or not records]
    for record in chosen:
        record |= dict.fromkeys(("mean", "worst_decile", "equal_steps"), np.nan)
        record["curve"] = [point | {"mean": np.nan} for point in record["curve"]]
    for point in made["diagnostics"][0]["communication"] if not records else ():
        point["mean"] = np.nan
    return made


@pytest.mark.filterwarnings("error")
def test_a_method_that_diverged_is_in_the_table_alone(tmp_path):
    page = comparison.report(diverged({"Ditto"}), tmp_path)
    assert "accuracy against bytes" in {x.title.lower() for x in page.figures}
    assert "Ditto" in document.html(page)
    figure = figures.draw_bytes(diverged({"Ditto"}))
    assert "Ditto" not in {text.get_text() for text in figure.axes[0].texts}


@pytest.mark.filterwarnings("error")
def test_there_are_no_curves_where_all_have_diverged(tmp_path):
    page = comparison.report(diverged({}), tmp_path)
    assert "accuracy against bytes" not in {x.title.lower() for x in page.figures}
