"""An experiment's results as one self-contained HTML page."""

from __future__ import annotations

import pathlib
from html import escape

import numpy as np

from potara_jax.reports import answers, page
from potara_jax.reports.table import (
    COLUMNS,
    PARENTS,
    Results,
    Row,
    best,
    cells,
    grouped,
    label,
    notes,
    over_seeds,
    percent,
    points,
    summarise,
)

UNIDENTIFIED = 0.1  # in the weight, within a decade of damping
_CAPTIONS = {
    "accuracy": (
        "Accuracy",
        "Each client is tested on its own distribution; a method's accuracy is the "
        "mean over clients. Small dots are seeds, the large marker is their mean and "
        "the bar one standard deviation to each side. A method that gains from both "
        "models lies to the right of the dashed line, the better of the federated and "
        "the local one. Hollow markers are oracles.",
    ),
    "segment": (
        "Between the local and the federated model",
        "Each thin line is one client's loss on held-out samples while its merge "
        "weight goes from the local model (left) to the federated one (right). A curve "
        "that dips between its ends has something to gain from merging, and a good "
        "weight sits at its lowest point. The barrier is how far a curve rises above "
        "the straight line between its ends: at zero, the two models are linearly "
        "connected.",
    ),
    "damping": (
        "Sensitivity to the damping",
        "The closed-form weight rests on the inverse of the Fisher information, which "
        "damping keeps finite. Flat lines around the dashed one mean that the choice "
        "of damping matters little; a narrow band means that all clients get about the "
        "same weight, so that little is personalised.",
    ),
    "communication": (
        "Communication",
        "Accuracy after some rounds against the bytes that all clients have sent and "
        "received by then: up and to the left is better. Horizontal lines are methods "
        "that communicate nothing.",
    ),
    "clients": (
        "Who holds what",
        "A column is a client: its number of training examples above, what it "
        "holds below, darker for more examples. Few dark cells in a column mean a "
        "client that sees little of all that there is.",
    ),
}


# --- The page ------------------------------------------------------------------------


def render(results: Results, figures: list[pathlib.Path]) -> str:
    """The page as HTML.

    figures: PNG files, shown in this order; their names choose the captions.
    """
    rows = summarise(results)
    body = [
        page.paragraphs(summary(rows), kind="lead"),
        page.paragraphs(privacy(results), kind="note"),
        "<h2>Methods</h2>",
        _tables(rows),
        *answers.section(results),
        *(page.figure(path, *_caption(path)) for path in figures),
        "<h2>How sure the weights are</h2>",
        page.paragraphs([_CERTAIN], kind="note"),
        _certainty(results),
        "<h2>Seconds of each phase</h2>",
        _seconds(results),
        "<h2>Clients left out</h2>",
        page.paragraphs([_LEFT_OUT], kind="note"),
        f'<div class="text">{_left_out(results)}</div>',
    ]
    title = f"Potara: {results['experiment']}"
    settings, versions = results["settings"], results["versions"]
    return page.document(title, "\n".join(body), settings, versions)


_CERTAIN = (
    "Of potara core, means over seeds. Not identified: the weight moves by more than "
    f"{UNIDENTIFIED} within a decade of damping: it is a choice and not an estimate. "
    "Barrier: the held-out loss rises above the line between both models somewhere on "
    "the segment, which the closed form takes not to happen. Interval: the mean width "
    "of the 90 % bootstrap interval over the samples."
)
_LEFT_OUT = "A client whose update is not finite is left out of its round."


def privacy(results: Results) -> list[str]:
    """What the noise of the federated rounds guarantees, where there is any."""
    if results["settings"].get("privacy_clip") is None:
        return []
    found = results["diagnostics"][0]["epsilon"]
    if found is None:
        return ["Privacy: no account, the server takes more than the clients' sum."]
    delta = results["settings"]["privacy_delta"]
    return [
        "Differential privacy of clients in the federated rounds (one replaced by any "
        f"other): epsilon {found:.3g} at delta {delta:g}."
    ]


def _caption(path: pathlib.Path) -> tuple[str, str]:
    return _CAPTIONS.get(path.stem, (path.stem, ""))


# --- The summary ---------------------------------------------------------------------


def summary(rows: list[Row]) -> list[str]:
    """What came out, a sentence for each heterogeneity.

    It is about `potara core`, or about another method where that one is missing, and
    says where the method does not beat both of its parents.
    """
    sentences = []
    for group in grouped(rows).values():
        subject = _subject(group)
        if subject is not None:
            sentences.append(_sentence(subject, group))
    return sentences


def _subject(rows: list[Row]) -> Row | None:
    """`potara core`, else the first Potara, else the best method that is no parent."""
    fair = [row for row in rows if not row.oracle and row.method not in PARENTS]
    named = [row for row in fair if row.method == "potara core"]
    kin = [row for row in fair if row.method.startswith("potara")]
    ranked = sorted(fair, key=lambda row: -row.mean)
    return next(iter([*named, *kin, *ranked]), None)


def _sentence(row: Row, group: list[Row]) -> str:
    where = f"With {label(row.heterogeneity)}, {row.method}"
    mean, rival = f"{percent(row.mean)} %", _rival(row, group)
    if row.gain is None:
        return f"{where} reaches {mean}{rival}."
    means = {other.method: percent(other.mean) for other in group}
    federated, local = (means[name] for name in PARENTS)
    against = f"{mean} against {federated} % federated and {local} % local"
    verb = "reaches" if round(row.gain, 3) > 0 else "does not beat both of its parents:"
    return f"{where} {verb} {against}, {_margin(row)}{rival}."


def _margin(row: Row) -> str:
    """The gain over the better parent, and whether it stands out from the seeds."""
    gain = f"{points(row.gain)} points to the better parent"
    if row.seeds == 1:
        return f"{gain} (one seed, so the spread is unknown)"
    within = ", within the spread" if abs(row.gain) <= row.gain_spread else ""
    return f"{gain} (± {percent(row.gain_spread)} over {row.seeds} seeds{within})"


def _rival(row: Row, group: list[Row]) -> str:
    """The best method that sees no test data, where the sentence has not named it."""
    fresh = [other for other in best(group) if other.method not in PARENTS]
    if not fresh or fresh[0].mean <= row.mean:
        return ""
    top = fresh[0]
    return f"; the best without test data is {top.method}, {percent(top.mean)} %"


# --- Tables and figures --------------------------------------------------------------


def _tables(rows: list[Row]) -> str:
    parts = []
    for name, group in grouped(rows).items():
        lines = [_method_line(row, best(group)) for row in group]
        parts += [f"<h3>{escape(label(name))}</h3>", page.table(COLUMNS, lines)]
    explained = [f"Accuracy: {over_seeds(rows)}, of the mean over clients.", _EXPLAINED]
    return "\n".join([*parts, page.paragraphs([*explained, *notes(rows)], kind="note")])


_EXPLAINED = (
    "Worst 10 %: mean accuracy of the worst tenth of the clients. Weight: of the "
    "federated model in the merge, mean over clients. Bytes: of all clients and "
    "rounds. Local steps: of one client. Parameters: what a client's model adds to "
    "the base."
)


def _method_line(row: Row, winners: list[Row]) -> str:
    text = cells(row)
    kind = "oracle" if row.oracle else "best" if row in winners else ""
    return page.line([text[name] for name in COLUMNS], kind=kind)


# --- How the run went ----------------------------------------------------------------


def _seconds(results: Results) -> str:
    """The phases' seconds, means over seeds, a line for each heterogeneity."""
    seconds: dict[str, list[dict]] = {}
    for entry in results["diagnostics"]:
        seconds.setdefault(entry["heterogeneity"], []).append(entry["seconds"])
    phases = list(
        dict.fromkeys(p for each in seconds.values() for s in each for p in s)
    )
    lines = []
    for name, each in seconds.items():
        spent = [float(np.mean([s.get(phase, 0.0) for s in each])) for phase in phases]
        texts = [f"{number:,.1f}" for number in [*spent, sum(spent)]]
        lines.append(page.line([label(name), *texts]))
    return page.table(["", *phases, "total"], lines)


def _certainty(results: Results) -> str:
    """Shares of clients whose weight or segment is not as assumed."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for entry in results["diagnostics"]:
        if "certainty" in entry:
            found.setdefault(entry["heterogeneity"], []).append(_doubts(entry))
    lines = []
    for name, each in found.items():
        unsure, barred, width = np.mean(each, axis=0)
        shown = f"{100 * unsure:.0f} %", f"{100 * barred:.0f} %", f"{width:.2f}"
        lines.append(page.line([label(name), *shown]))
    return page.table(["", "Not identified", "Barrier", "Interval"], lines)


def _doubts(entry: dict) -> tuple[float, float, float]:
    """Of one run: shares of clients not identified and barred; the interval's width."""
    sure, barrier = entry["certainty"], np.asarray(entry["segment"]["barrier"])
    moves = np.asarray(sure["moves_in_a_decade"])
    width = np.asarray(sure["high"]) - np.asarray(sure["low"])
    return (moves > UNIDENTIFIED).mean(), (barrier > 0).mean(), width.mean()


def _left_out(results: Results) -> str:
    """Clients whose update was not finite, a line for each run and phase."""
    found: dict[tuple[str, ...], dict[int, list[int]]] = {}
    for entry in results["diagnostics"]:
        for one in entry["left_out"]:
            run = label(entry["heterogeneity"]), str(entry["seed"]), str(one["phase"])
            rounds = found.setdefault(run, {}).setdefault(one["client"], [])
            rounds.append(one["round"])
    if not found:
        return "<p>None: every update was finite.</p>"
    lines = [page.line([*run, _of_rounds(clients)]) for run, clients in found.items()]
    return page.table(["Heterogeneity", "Seed", "Phase", "Clients"], lines)


def _of_rounds(clients: dict[int, list[int]]) -> str:
    return ", ".join(
        f"client {client} (round {rounds[0]})"
        if len(rounds) == 1
        else f"client {client} ({len(rounds)} rounds, from {rounds[0]} on)"
        for client, rounds in clients.items()
    )
