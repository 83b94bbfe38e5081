"""Tick labels of every figure: plain text inside the figure, none over another."""

import itertools

import matplotlib.style
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from potara_jax.reports import drawing
from potara_jax.reports.figures import (
    clients,
    communication,
    comparison,
    damping,
    scores,
    segment,
    simulation,
    study,
)
from tests.reports import test_comparison, test_simulation, test_study
from tests.reports.synthetic import METHODS, as_losses, synthetic

PANELS = ("0.1", "1", "tasks")


def labels(figure):
    """The text and the box of every tick label, by axis, and the figure's box."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    for axes in figure.get_axes():
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [t for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
            texts = [t.label1 for t in ticks if t.label1.get_text()]
            yield [
                (text.get_text(), text.get_window_extent(renderer))
                for text in texts
                if axes.get_visible() and text.get_visible()
            ]


def drawn(draw, results):
    with matplotlib.style.context(["default", drawing._LOOK]):
        figure = draw(results)
        return figure.bbox, list(labels(figure))


def methods(**options):
    """A run's results over many powers of ten."""
    results = synthetic(clients=4, heterogeneities=PANELS, seeds=1, **options)
    for entry in results["diagnostics"]:
        entry["segment"]["losses"] = np.logspace(-6, 3, 44).reshape(4, 11).tolist()
        entry["damping"]["values"] = np.logspace(-12, 6, 13).tolist()
        for point in entry["communication"]:
            point["bytes"] *= 1e-7 if point["method"] == "FFA-LoRA" else 1
    return results


def compared():
    results = test_comparison.exchanged(heterogeneities=PANELS, seeds=1)
    for record in results["methods"]:
        for point in record["curve"]:
            point["bytes"] *= 1e-5 if record["method"] == "Ditto" else 1
    return results


def studied():
    numbers = (1, 2, 3, 5, 8, 10, 12, 15, 20, 25, 30, 50, 100)
    values = [n * 10.0**e for e in range(-4, 3) for n in (1, 3)]
    estimates = [test_study.estimate("grid", 0.7, number=n) for n in numbers]
    estimates += [test_study.potara(value, 0.7) for value in values]
    names = ("0.01", "0.03", "0.1", "0.3", "1", "3", "10", "tasks")
    return test_study.results(*(test_study.cell(n, 0, estimates) for n in names))


def simulated():
    results = test_simulation.results()
    for point in results["cells"][0]["curve"]:
        point["round"] *= 25_000
    return results


def paced(results):
    return simulation.draw_speed(
        [
            line | {"round": 25_000 * line["round"], "memory": 10**7 * line["memory"]}
            for line in test_simulation.speed()
        ]
    )


FIGURES = {
    "scores": (scores.draw, lambda: methods(methods=len(METHODS))),
    "losses": (scores.draw, lambda: as_losses(methods())),
    "segment": (segment.draw, methods),
    "damping": (damping.draw, methods),
    "communication": (communication.draw, methods),
    "clients": (clients.draw, methods),
    "two classes": (clients.draw, lambda: methods(classes=2)),
    "compared scores": (comparison.draw_scores, compared),
    "parents": (comparison.draw_parents, compared),
    "bytes": (comparison.draw_bytes, compared),
    "samples": (study.draw_samples, studied),
    "study's damping": (study.draw_damping, studied),
    "heterogeneity": (study.draw_heterogeneity, studied),
    "simulation": (simulation.draw_scores, simulated),
    "speed": (paced, simulated),
}


@pytest.mark.parametrize("name", FIGURES)
def test_tick_labels_can_be_read(name):
    draw, results = FIGURES[name]
    whole, axes = drawn(draw, results())
    assert sum(map(len, axes)) > 4
    for each in axes:
        for text, box in each:
            assert not set("$\\{}") & set(text)
            assert whole.x0 <= box.x0 and box.x1 <= whole.x1, text
            assert whole.y0 <= box.y0 and box.y1 <= whole.y1, text
        for (text, box), (other, another) in itertools.combinations(each, 2):
            assert not box.overlaps(another), (text, other)


@pytest.mark.parametrize(
    ("subs", "span", "width", "shown"),
    [
        ((1, 2, 5), 100, 6, ["1", "2", "5", "10", "20", "50", "100"]),
        ((1, 2, 5), 1e5, 6, ["1", "10", "100", "1000", "10000", "100000"]),
        ((1, 3), 1e4, 3, ["1", "10", "100", "1000", "10000"]),
        ((1,), 1e8, 4, ["1", "100", "10000", "1e+06", "1e+08"]),
    ],
)
def test_the_roundest_ticks_are_labelled_where_not_all_have_room(
    subs, span, width, shown
):
    def draw(_):
        figure, (axes,) = drawing.columns([""], size=(width, 2))
        axes.plot([1, span], [0, 1])
        axes.set_xlim(1, span)
        drawing.log_axis(axes, "x", subs=subs)
        return figure

    _, (across, _) = drawn(draw, None)
    assert [text for text, _ in across] == shown
