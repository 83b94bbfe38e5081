"""What lies behind a run's table: certainty, seconds, and clients left out."""

from __future__ import annotations

import numpy as np

from potara_jax.reports.document import Cell, Group, Row, Section, Table, Text
from potara_jax.reports.formats import label
from potara_jax.reports.summary import Record, Results, of_seeds

UNIDENTIFIED = 0.1  # in the weight, within a decade of damping
_CERTAINTY_EXPLAINED = (
    "For potara core, means over seeds. Not identified: share of the clients whose "
    f"weight moves by more than {UNIDENTIFIED} within a decade of damping, so that it "
    "is a choice rather than an estimate. Barrier: share of the clients whose held-out "
    "loss rises above the straight line between both models somewhere on the segment, "
    "which the closed form assumes not to happen. Interval: mean width of the 90 % "
    "bootstrap interval over the samples."
)
_NAMED = 5  # clients, in a line
_LEFT_OUT_EXPLAINED = "A client whose update is not finite is left out of that round."


def sections(results: Results) -> list[Section]:
    """The certainty of the weights, where it was measured, and two tables of rounds."""
    return [
        *_certainty(results),
        Section("Seconds of each phase", (seconds(results),)),
        Section("Clients left out", (Text(_LEFT_OUT_EXPLAINED), left_out(results))),
    ]


def _certainty(results: Results) -> list[Section]:
    if not any("certainty" in entry for entry in results["diagnostics"]):
        return []
    parts = certainty(results), Text(_CERTAINTY_EXPLAINED)
    return [Section("How certain the weights are", parts)]


def seconds(results: Results) -> Table:
    """The seconds of each phase, means over seeds, one row per heterogeneity."""
    runs = of_seeds(results, "seconds")
    phases = list(
        dict.fromkeys(p for each in runs.values() for run in each for p in run)
    )
    rows = []
    for name, each in runs.items():
        spent = [float(np.mean([run.get(p, 0.0) for run in each])) for p in phases]
        cells = [Cell(f"{value:,.1f}", value) for value in (*spent, sum(spent))]
        rows.append(Row((label(name), *cells)))
    return Table(("Heterogeneity", *phases, "total"), [Group(rows)])


def certainty(results: Results) -> Table:
    """Shares of clients for which the weight or the segment is not as assumed."""
    doubts: dict[str, list[tuple[float, float, float]]] = {}
    for entry in results["diagnostics"]:
        if "certainty" in entry:
            doubts.setdefault(entry["heterogeneity"], []).append(_doubts(entry))
    rows = []
    for name, each in doubts.items():
        unsure, barred, width = map(float, np.mean(each, axis=0))
        shares = [Cell(f"{100 * share:.0f} %", share) for share in (unsure, barred)]
        rows.append(Row((label(name), *shares, Cell(f"{width:.2f}", width))))
    columns = ("Heterogeneity", "Not identified", "Barrier", "Interval")
    return Table(columns, [Group(rows)])


def _doubts(entry: Record) -> tuple[float, float, float]:
    """A run's shares of clients not identified and barred; the interval's width."""
    sure, barrier = entry["certainty"], np.asarray(entry["segment"]["barrier"])
    moves = np.asarray(sure["moves_in_a_decade"])
    width = np.asarray(sure["high"]) - np.asarray(sure["low"])
    return (moves > UNIDENTIFIED).mean(), (barrier > 0).mean(), width.mean()


def left_out_notes(results: Results) -> list[str]:
    """A line that names the clients whose update was not finite, if there are any."""
    places = [
        (one["client"], label(entry["heterogeneity"]), entry["seed"])
        for entry in results["diagnostics"]
        for one in entry.get("left_out", ())
    ]
    clients = [
        f"client {client} ({name}, seed {seed})"
        for client, name, seed in dict.fromkeys(places)
    ]
    if not clients:
        return []
    more = len(clients) - _NAMED
    named = [*clients[:_NAMED], *([f"and {more} more"] if more > 0 else [])]
    start = "Left out of rounds with an update that is not finite:"
    return [f"{start} {', '.join(named)}."]


def left_out(results: Results) -> Table | Text:
    """Clients whose update was not finite, a row for each run and phase."""
    runs: dict[tuple[str, ...], dict[int, list[int]]] = {}
    for entry in results["diagnostics"]:
        for one in entry["left_out"]:
            run = label(entry["heterogeneity"]), str(entry["seed"]), str(one["phase"])
            rounds = runs.setdefault(run, {}).setdefault(one["client"], [])
            rounds.append(one["round"])
    if not runs:
        return Text("None: every update was finite.")
    rows = [Row((*run, _in_rounds(clients))) for run, clients in runs.items()]
    columns = ("Heterogeneity", "Seed", "Phase", "Clients")
    return Table(columns, [Group(rows)], text=True)


def _in_rounds(clients: dict[int, list[int]]) -> str:
    return ", ".join(
        f"client {client} (round {rounds[0]})"
        if len(rounds) == 1
        else f"client {client} ({len(rounds)} rounds, from {rounds[0]} on)"
        for client, rounds in clients.items()
    )
