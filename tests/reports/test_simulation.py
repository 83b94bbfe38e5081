import pytest

from potara_jax.reports import document, simulation
from potara_jax.reports.figures import simulation as figures


def results(**more):
    curve = [
        {"round": n, "bytes": n * 10**9, "mean": n / 10, "worst_decile": n / 20}
        for n in (2, 4)
    ]
    cell = {
        **{"heterogeneity": "0.1", "seed": 3, "algorithm": "FedIT", "clients": 10_000},
        **{"cohort": 200, "seen": 800, "state_bytes": 2_000_000, "steps": 4000},
        "curve": curve,
    }
    about = {"experiment": "digits", "settings": {"a": 1}, "versions": {"jax": "0.10"}}
    return {**about, "cells": [cell], **more}


def speed(memory=(100, 100, 120, 150)):
    return [
        {
            **{"heterogeneity": "0.1", "seed": 3, "round": n, "steps": 1000},
            **{"seconds": 1 + n, "memory": megabytes * 10**6},
        }
        for n, megabytes in enumerate(memory)
    ]


def texts(results, lines):
    table = simulation.table(results, lines)
    ((rows, _),) = table.groups
    return dict(zip(table.columns, rows[0].texts, strict=True))


def test_a_federations_row():
    assert texts(results(), speed()) == {
        "Federation": "Dirichlet 0.1, seed 3",
        "Accuracy %": "40.0",
        "Worst 10 %": "20.0",
        "Bytes": "4 GB",
        "Clients seen": "800 of 10,000",
        "State": "2 MB",
        "Client-steps": "4,000",
        "Steps / s": "417",  # the median of 1000, 500, 333 and 250
        "Memory": "150 MB",
        "Growth %": "+50.0",
    }


@pytest.mark.parametrize("lines", [[], [speed()[0] | {"seed": 4}]])
def test_without_lines_speed_is_missing(lines):
    row = texts(results(), lines)
    assert row["Steps / s"] == row["Memory"] == row["Growth %"] == "–"  # noqa: RUF001


def test_three_rounds_show_no_growth():
    assert texts(results(), speed((1, 2, 3)))["Growth %"] == "+0.0"


def test_the_terminal_has_one_column_per_federation():
    (table,) = simulation.brief(results(), speed=speed())
    assert table.columns == ("Federation", "Dirichlet 0.1, seed 3")
    ((rows, _),) = table.groups
    assert rows[0].texts == ["Accuracy %", "40.0"]


def test_the_report(tmp_path):
    page = simulation.report(results(), tmp_path, speed=speed())
    assert page.lead == [
        "FedIT with 10,000 clients, 200 of them in a round, reaches 40.0 % after "
        "4 rounds."
    ]
    assert document.html(page).count("<img") == 2
    assert len(simulation.report(results(), tmp_path).sections) == 2, "without speed"


@pytest.mark.parametrize(("floor", "verb"), [(0.3, "against"), (0.4, "does not beat")])
def test_the_largest_class_is_a_column_and_in_the_finding(floor, verb):
    given = results()
    given["cells"][0]["largest_class"] = {"mean": floor, "worst_decile": 0.1}
    row = texts(given, [])
    assert row["Largest class %"] == f"{100 * floor:.1f}"
    assert list(row).index("Largest class %") == 3
    assert verb in simulation.finding(given) and "largest class." in (
        simulation.finding(given)
    )


def test_losses_are_shown_as_they_are():
    given = results(metric={"name": "loss", "percent": False})
    for point in given["cells"][0]["curve"]:
        point["mean"] = -point["mean"]
    assert texts(given, [])["Loss"] == "0.400"
    (axes,) = figures.draw_scores(given).axes
    assert list(axes.lines[0].get_ydata()) == [0.2, 0.4]
    assert axes.get_ylabel() == "loss"
