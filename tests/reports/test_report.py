from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from potara_jax.reports import figures, report
from potara_jax.reports.table import PARENTS, summarise
from tests.evaluation import METHODS, synthetic

NAMES = ["accuracy", "segment", "damping", "communication", "clients"]
HOSTILE = '<script>alert("x")</script>&'


def small():
    return synthetic(clients=4, seeds=2, methods=13)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return figures.draw(small(), tmp_path_factory.mktemp("figures") / "new")


# --- Figures -------------------------------------------------------------------------


def test_every_figure_is_a_png_and_nothing_else_is_left(drawn):
    assert [path.name for path in drawn] == [f"{name}.png" for name in NAMES]
    assert {path.read_bytes()[:8] for path in drawn} == {b"\x89PNG\r\n\x1a\n"}
    assert sorted(drawn[0].parent.iterdir()) == sorted(drawn)


def test_the_same_results_give_the_same_bytes_under_any_preferences(drawn, tmp_path):
    with matplotlib.rc_context({"axes.linewidth": 5, "savefig.bbox": "tight"}):
        again = figures.draw(small(), tmp_path)
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in drawn]


def test_other_results_give_other_bytes(drawn, tmp_path):
    results = small()
    results["methods"][0]["mean"] -= 0.1
    again = figures.draw(results, tmp_path)
    same = [a.read_bytes() == b.read_bytes() for a, b in zip(again, drawn, strict=True)]
    assert not same[0]


@pytest.mark.parametrize("methods", [1, len(METHODS)])
def test_one_seed_and_one_client(tmp_path, methods):
    results = synthetic(
        clients=1, heterogeneities=("tasks",), seeds=1, methods=methods, classes=2
    )
    assert len(figures.draw(results, tmp_path)) == len(NAMES)


def test_figures_without_data_are_left_out(tmp_path):
    results = small()
    results["diagnostics"] = []
    assert [path.stem for path in figures.draw(results, tmp_path)] == ["accuracy"]


def test_a_name_is_not_a_formula(tmp_path):
    results = synthetic(clients=2, heterogeneities=("0.1",), seeds=1, methods=1)
    results["methods"][0]["method"] = r"$\nonsense{$"
    results["diagnostics"][0]["communication"][0]["method"] = r"$\nonsense{$"
    assert len(figures.draw(results, tmp_path)) == len(NAMES)


def test_every_method_looks_different():
    looks = figures.styles(synthetic(methods=len(METHODS)))
    assert len({looks[name] for name in METHODS}) == len(METHODS)
    assert len({looks[name].colour for name in METHODS}) == len(METHODS)


def test_the_looks_do_not_depend_on_the_order_of_rows():
    results = synthetic(methods=len(METHODS))
    looks = figures.styles(results)
    results["methods"].reverse()
    reversed_ = figures.styles(results)
    assert reversed_["federated"] == looks["federated"]
    assert reversed_["potara core"] == looks["potara core"]


def test_oracles_are_hollow():
    (axes,) = figures.accuracy(synthetic(heterogeneities=("0.1",))).axes
    markers = [line for line in axes.lines if line.get_marker() == "o"]
    hollow = [to_rgba(m.get_markerfacecolor()) == (1, 1, 1, 1) for m in markers]
    assert hollow == [name == "oracle grid" for name in METHODS[:13]]


def test_accuracy_has_a_dot_for_every_seed():
    results = synthetic(heterogeneities=("0.1",), seeds=3, methods=2)
    (axes,) = figures.accuracy(results).axes
    dots = [line.get_xdata() for line in axes.lines if line.get_marker() == "."]
    expected = [100 * record["mean"] for record in results["methods"]]
    np.testing.assert_allclose(np.concatenate(dots), expected)


@pytest.mark.parametrize(
    ("losses", "scale", "marked"),
    [([1.0, 0.5, 1.0], "linear", 0.75), ([100.0, 1.0, 100.0], "log", 10.0)],
)
def test_the_chosen_weight_is_marked_on_the_curve(losses, scale, marked):
    results = synthetic(clients=1, heterogeneities=("0.1",), seeds=1)
    segment = results["diagnostics"][0]["segment"]
    segment |= {"points": [0, 0.5, 1], "losses": [losses]}
    segment["chosen"] = {"potara core": [0.25]}
    (axes,) = figures.segment(results).axes
    assert axes.get_yscale() == scale
    np.testing.assert_allclose(axes.collections[0].get_offsets(), [[0.25, marked]])


def test_the_damping_lines_are_means_over_the_clients_of_all_seeds():
    results = synthetic(clients=3, heterogeneities=("0.1",), seeds=2)
    seeds = [entry["damping"] for entry in results["diagnostics"]]
    weights = np.concatenate([seed["weights"]["potara core"] for seed in seeds], axis=1)
    (axes,) = figures.damping(results).axes
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
    (axes,) = figures.communication(results).axes
    (line,) = [line for line in axes.lines if line.get_marker() != "None"]
    np.testing.assert_allclose(line.get_xydata(), [[2, 50], [4, 50]])
    assert axes.get_xlabel() == "communicated [MB]"
    assert len(axes.lines) == 3, "base model and local are levels"


def test_who_holds_what():
    results = synthetic(clients=2, heterogeneities=("0.1",), seeds=1)
    entry = results["diagnostics"][0]
    entry |= {"counts": [10, 20], "proportions": [[1.0, 0.0], [0.25, 0.75]]}
    above, below, *_ = figures.clients(results).get_axes()
    assert [bar.get_height() for bar in above.patches] == [10, 20]
    np.testing.assert_allclose(below.collections[0].get_array(), [[10, 5], [0, 15]])


# --- The summary ---------------------------------------------------------------------


def sentence(means):
    """The summary of one heterogeneity; `means` are lists over seeds."""
    results = synthetic(clients=1, heterogeneities=("0.1",), seeds=1, methods=1)
    template = results["methods"][0]
    results["methods"] = [
        template | {"method": method, "seed": seed, "mean": mean}
        for method, values in means.items()
        for seed, mean in enumerate(values)
    ]
    (text,) = report.summary(summarise(results))
    return text


def parents(federated, local):
    return {PARENTS[0]: federated, PARENTS[1]: local}


def test_the_summary_of_a_gain():
    assert sentence(parents([0.841], [0.899]) | {"potara core": [0.912]}) == (
        "With Dirichlet 0.1, potara core reaches 91.2 % against 84.1 % federated and "
        "89.9 % local, +1.3 points to the better parent (one seed, so the spread is "
        "unknown)."
    )


@pytest.mark.parametrize("mean", [0.88, 0.899, 0.8994])
def test_the_summary_says_when_a_parent_is_not_beaten(mean):
    text = sentence(parents([0.841], [0.899]) | {"potara core": [mean]})
    assert "does not beat both of its parents" in text
    assert "reaches" not in text


def test_the_summary_says_when_a_gain_is_within_the_spread():
    both = parents([0.5, 0.5], [0.6, 0.6])
    assert "within the spread" in sentence(both | {"potara core": [0.60, 0.64]})
    assert "within the spread" not in sentence(both | {"potara core": [0.68, 0.69]})


def test_the_summary_names_a_better_method():
    both = parents([0.5], [0.6]) | {"potara core": [0.7]}
    assert sentence(both | {"Hermite": [0.75]}).endswith(
        "; the best without test data is Hermite, 75.0 %."
    )
    assert "Hermite" not in sentence(both | {"Hermite": [0.65]})


def test_the_summary_does_without_parents():
    text = sentence({"potara core": [0.7]})
    assert text == "With Dirichlet 0.1, potara core reaches 70.0 %."


# --- The page ------------------------------------------------------------------------


class Page(HTMLParser):
    """The tags of a page, its references and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.references, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_page_embeds_the_figures_and_needs_no_network(drawn):
    html = report.render(small(), drawn)
    page = Page(html)
    start = "data:image/png;base64,"
    assert all(reference.startswith(start) for reference in page.references)
    embedded = [base64.b64decode(ref[len(start) :]) for ref in page.references]
    assert embedded == [path.read_bytes() for path in drawn]
    assert not {"script", "link", "iframe", "base"} & set(page.tags)
    rest = re.sub(r'src="[^"]*"', "", html)
    assert not re.search(r"https?:|url\(|@import|//", rest)
    assert page.tags.count("figcaption") == page.tags.count("img") == len(NAMES)


def test_the_page_escapes_every_text(tmp_path):
    results = small()
    results |= {"experiment": HOSTILE, "settings": {HOSTILE: HOSTILE, "x": [HOSTILE]}}
    results["versions"] = {HOSTILE: HOSTILE}
    for record in results["methods"]:
        if record["method"] == "potara core":
            record["method"] = f"Potara {HOSTILE}"
    results["diagnostics"][0]["seconds"] = {HOSTILE: 1.0}
    results["diagnostics"][0]["left_out"][0]["phase"] = HOSTILE
    figure = tmp_path / "a <b>.png"
    figure.write_bytes(b"")
    page = Page(report.render(results, [figure]))
    assert not {"script", "b"} & set(page.tags)
    assert page.text.count(HOSTILE) >= 10
    assert "a <b>" in page.text


def test_the_page_marks_oracles_and_the_best():
    html = report.render(small(), [])
    assert html.count('<tr class="oracle"><th scope="row">oracle grid †</th>') == 2
    assert html.count('<tr class="best">') == 2
    assert "Oracle: of some weights, the best on the test data" in html


def test_the_page_says_who_was_left_out():
    results = small()
    assert "client 7 (round 3)" in report.render(results, [])
    for entry in results["diagnostics"]:
        entry["left_out"] = []
    page = report.render(results, [])
    assert "client 7" not in page
    assert "None: every update was finite." in page


def test_the_seconds_are_means_over_seeds():
    results = synthetic(heterogeneities=("0.1",), seeds=2)
    for entry, seconds in zip(results["diagnostics"], (10.0, 20.0), strict=True):
        entry["seconds"] = {"base": 1.0, "merge": seconds}
    text = "<td>1.0</td><td>15.0</td><td>16.0</td>"
    assert text in report.render(results, [])


def test_settings_and_versions_are_listed():
    page = Page(report.render(small(), []))
    for text in ("clients", "relative", "python", "0.10.2"):
        assert text in page.text
    assert "details" in page.tags


@pytest.mark.parametrize(
    ("found", "said"), [(1.234, "epsilon 1.23 at delta 1e-05"), (None, "no account")]
)
def test_the_page_says_what_privacy_there_is(found, said):
    results = small()
    assert report.privacy(results) == []
    results["settings"] |= {"privacy_clip": 1.0, "privacy_delta": 1e-5}
    results["diagnostics"][0]["epsilon"] = found
    (sentence,) = report.privacy(results)
    assert said in sentence
