from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from potara_jax.reports import drawing, methods
from potara_jax.reports.figures import (
    clients,
    communication,
    damping,
    scores,
    segment,
    styles,
)
from potara_jax.reports.formats import metric_of
from tests.reports.synthetic import METHODS, as_losses, synthetic

NAMES = ["accuracy", "segment", "damping", "communication", "clients"]


def small():
    return synthetic(clients=4, seeds=2, methods=13)


def draw(results, folder):
    drawings = methods.drawings(metric_of(results))
    return [figure.path for figure in drawing.illustrate(drawings, results, folder)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw(small(), tmp_path_factory.mktemp("figures") / "new")


def test_every_figure_is_a_png_and_nothing_else_is_left(drawn):
    assert [path.name for path in drawn] == [f"{name}.png" for name in NAMES]
    assert {path.read_bytes()[:8] for path in drawn} == {b"\x89PNG\r\n\x1a\n"}
    assert sorted(drawn[0].parent.iterdir()) == sorted(drawn)


def test_figures_of_an_earlier_report_are_removed_and_nothing_else(drawn, tmp_path):
    first, second, *_ = (shutil.copy(path, tmp_path) for path in drawn)
    figure = matplotlib.figure.Figure()
    figure.savefig(tmp_path / "mine.png")
    (tmp_path / "empty.png").touch()
    drawing.remove_others(tmp_path, [Path(second)])
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {Path(second).name, "mine.png", "empty.png"}
    assert not Path(first).exists()


def test_the_same_results_give_the_same_bytes_under_any_preferences(drawn, tmp_path):
    with matplotlib.rc_context({"axes.linewidth": 5, "savefig.bbox": "tight"}):
        again = draw(small(), tmp_path)
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in drawn]


def test_other_results_give_other_bytes(drawn, tmp_path):
    results = small()
    results["methods"][0]["mean"] -= 0.1
    again = draw(results, tmp_path)
    same = [a.read_bytes() == b.read_bytes() for a, b in zip(again, drawn, strict=True)]
    assert not same[0]


@pytest.mark.parametrize("methods", [1, len(METHODS)])
def test_one_seed_and_one_client(tmp_path, methods):
    results = synthetic(
        clients=1, heterogeneities=("tasks",), seeds=1, methods=methods, classes=2
    )
    assert len(draw(results, tmp_path)) == len(NAMES)


def test_figures_without_data_are_left_out(tmp_path):
    results = small()
    results["diagnostics"] = []
    assert [path.stem for path in draw(results, tmp_path)] == ["accuracy"]


def test_a_name_is_not_a_formula(tmp_path):
    results = synthetic(clients=2, heterogeneities=("0.1",), seeds=1, methods=1)
    results["methods"][0]["method"] = r"$\nonsense{$"
    results["diagnostics"][0]["communication"][0]["method"] = r"$\nonsense{$"
    assert len(draw(results, tmp_path)) == len(NAMES)


def test_every_method_looks_different():
    looks = styles.styles(synthetic(methods=len(METHODS)))
    assert len({looks[name] for name in METHODS}) == len(METHODS)
    assert len({looks[name].colour for name in METHODS}) == len(METHODS)


def test_the_looks_do_not_depend_on_the_order_of_rows():
    results = synthetic(methods=len(METHODS))
    looks = styles.styles(results)
    results["methods"].reverse()
    reversed_ = styles.styles(results)
    assert reversed_["federated"] == looks["federated"]
    assert reversed_["potara core"] == looks["potara core"]


def test_oracles_are_hollow():
    (axes,) = scores.draw(synthetic(heterogeneities=("0.1",))).axes
    markers = [line for line in axes.lines if line.get_marker() == "o"]
    hollow = [to_rgba(m.get_markerfacecolor()) == (1, 1, 1, 1) for m in markers]
    assert hollow == [name == "oracle grid" for name in METHODS[:13]]


def test_accuracy_has_a_dot_for_every_seed():
    results = synthetic(heterogeneities=("0.1",), seeds=3, methods=2)
    (axes,) = scores.draw(results).axes
    dots = [line.get_xdata() for line in axes.lines if line.get_marker() == "."]
    expected = [100 * record["mean"] for record in results["methods"]]
    np.testing.assert_allclose(np.concatenate(dots), expected)


@pytest.mark.parametrize(
    ("losses", "scale", "marked"),
    [([1.0, 0.5, 1.0], "linear", 0.75), ([100.0, 1.0, 100.0], "log", 10.0)],
)
def test_the_chosen_weight_is_marked_on_the_curve(losses, scale, marked):
    results = synthetic(clients=1, heterogeneities=("0.1",), seeds=1)
    diagnostic = results["diagnostics"][0]["segment"]
    diagnostic |= {"points": [0, 0.5, 1], "losses": [losses]}
    diagnostic["chosen"] = {"potara core": [0.25]}
    (axes,) = segment.draw(results).axes
    assert axes.get_yscale() == scale
    np.testing.assert_allclose(axes.collections[0].get_offsets(), [[0.25, marked]])


def test_the_damping_lines_are_means_over_the_clients_of_all_seeds():
    results = synthetic(clients=3, heterogeneities=("0.1",), seeds=2)
    seeds = [entry["damping"] for entry in results["diagnostics"]]
    weights = np.concatenate([seed["weights"]["potara core"] for seed in seeds], axis=1)
    (axes,) = damping.draw(results).axes
    lines = [line.get_ydata() for line in axes.lines if line.get_marker() != "None"]
    np.testing.assert_allclose(lines[0], weights.mean(1))
    assert list(axes.lines[-1].get_xdata()) == [0.1, 0.1]


def test_communication_is_averaged_over_seeds_in_decimal_units():
    results = synthetic(heterogeneities=("0.1",), seeds=2)
    for seed, entry in enumerate(results["diagnostics"]):
        entry["communication"] = [
            {
                "method": "federated",
                "round": n,
                "bytes": 2_000_000 * n,
                "mean": 0.4 + seed / 5,
            }
            for n in (2, 1)
        ]
    (axes,) = communication.draw(results).axes
    (line,) = [line for line in axes.lines if line.get_marker() != "None"]
    np.testing.assert_allclose(line.get_xydata(), [[2, 50], [4, 50]])
    assert axes.get_xlabel() == "communicated [MB]"
    assert len(axes.lines) == 3, "base model and local are levels"


def test_who_holds_what():
    results = synthetic(clients=2, heterogeneities=("0.1",), seeds=1)
    entry = results["diagnostics"][0]
    entry |= {"counts": [10, 20], "proportions": [[1.0, 0.0], [0.25, 0.75]]}
    above, below, *_ = clients.draw(results).get_axes()
    assert [bar.get_height() for bar in above.patches] == [10, 20]
    np.testing.assert_allclose(below.collections[0].get_array(), [[10, 5], [0, 15]])


@pytest.mark.parametrize("module", [damping, segment, communication])
def test_ticks_of_logarithmic_axes_are_plain_numbers(module):
    """Formulas are not parsed, so that they would be shown as they are written."""
    results = synthetic(clients=2, heterogeneities=("0.1", "tasks"), seeds=1)
    for entry in results["diagnostics"]:
        for point in entry["communication"]:
            point["bytes"] *= 0.01 if point["method"] == "FFA-LoRA" else 1
        entry["segment"]["losses"] = [[1e-3, *[1.0] * 9, 50.0]] * 2
    figure = module.draw(results)
    with matplotlib.style.context(drawing._LOOK):
        figure.draw_without_rendering()
    axes = figure.axes[0]
    scales = {axes.get_xscale(): axes.xaxis, axes.get_yscale(): axes.yaxis}
    texts = [label.get_text() for label in scales["log"].get_ticklabels(which="both")]
    assert len(texts) > 2
    assert not set("".join(texts)) - set("0123456789.e-+")


def test_quantiles_of_damping_are_on_a_linear_axis():
    results = synthetic(clients=2, heterogeneities=("0.1",), seeds=1)
    results["diagnostics"][0]["damping"]["values"] = np.linspace(0, 0.99, 13).tolist()
    (axes,) = damping.draw(results).axes
    assert axes.get_xscale() == "linear"


def test_losses_are_shown_as_they_are():
    results = as_losses(synthetic(heterogeneities=("0.1",), seeds=1, methods=1))
    (axes,) = scores.draw(results).axes
    (marker,) = (line for line in axes.lines if line.get_marker() == "o")
    loss = np.mean(results["methods"][0]["loss"])
    np.testing.assert_allclose(marker.get_xdata(), [loss])
    assert axes.get_xlabel() == "loss"


def test_the_figure_of_scores_is_named_after_the_metric(tmp_path):
    paths = draw(as_losses(small()), tmp_path)
    assert [path.stem for path in paths] == ["loss", *NAMES[1:]]


def test_models_that_diverged_are_left_out_of_every_figure(tmp_path):
    results, nan = small(), float("nan")
    for each in results["methods"][::2]:
        each["mean"] = each["worst_decile"] = nan
        each["accuracy"] = [nan] * len(each["accuracy"])
    for entry in results["diagnostics"]:
        entry["segment"]["losses"] = np.full_like(entry["segment"]["losses"], nan)
        entry["segment"]["barrier"] = [nan] * len(entry["segment"]["barrier"])
    assert [path.stem for path in draw(results, tmp_path)] == NAMES


def test_clients_of_one_stratum_are_bars_alone():
    results = synthetic(clients=5, heterogeneities=("tasks",), seeds=1, classes=1)
    figure = clients.draw(results)
    ((axes,),) = [part.axes for part in figure.subfigs]
    assert len(axes.patches) == 5 and axes.get_xlabel() == "client"
    assert figure.get_suptitle() == "Training examples by client, first seed"


def test_the_strata_are_named_also_where_the_last_is_nobodys():
    results = synthetic(clients=5, heterogeneities=("tasks",), seeds=1, classes=3)
    held = {"kind": "label", "names": ["a", "b", "c", "d"], "clients": list("vwxyz")}
    results["diagnostics"][0]["held"] = held
    figure = clients.draw(results)
    below = figure.subfigs[0].axes[1]
    assert [text.get_text() for text in below.get_yticklabels()] == ["a", "b", "c"]
    places = [text.get_text() for text in below.get_xticklabels()]
    assert places == ["0 v", "1 w", "2 x", "3 y", "4 z"]
    title = "Training examples by label and client, first seed"
    assert figure.get_suptitle() == title
