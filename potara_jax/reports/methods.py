"""The report of a run: every method's score and cost, and diagnostics."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from potara_jax.reports import answers, drawing
from potara_jax.reports.document import (
    Cell,
    Group,
    Report,
    Row,
    Section,
    Table,
    Text,
    figure_sections,
)
from potara_jax.reports.figures.clients import CLIENTS
from potara_jax.reports.figures.communication import communication
from potara_jax.reports.figures.damping import DAMPING
from potara_jax.reports.figures.scores import scores
from potara_jax.reports.figures.segment import SEGMENT
from potara_jax.reports.formats import MISSING, Metric, label, metric_of, size
from potara_jax.reports.summary import (
    PARENTS,
    Record,
    Results,
    Summary,
    best,
    grouped,
    over_seeds,
    summarise,
)

UNIDENTIFIED = 0.1  # in the weight, within a decade of damping
DAGGER = "†"
ORACLES = f"{DAGGER} Oracle: chosen among several weights on the test data."
_SHARED = ("Method", "Score", "Gain", "Worst 10 %", "Weight")
COLUMNS = (
    *(*_SHARED, "Bytes up", "Bytes down"),
    *("Local steps", "Parameters", "Training s"),
)
BRIEF = (*_SHARED, "Bytes", "Local steps")
_COLUMNS_EXPLAINED = (
    "Worst 10 %: mean over the worst tenth of the clients. Weight: that of the "
    "federated model in the merge, mean over clients. Bytes: all clients and rounds. "
    "Local steps: one client's. Parameters: what a client's model adds to the base."
)
_CERTAINTY_EXPLAINED = (
    "For potara core, means over seeds. Not identified: share of the clients whose "
    f"weight moves by more than {UNIDENTIFIED} within a decade of damping, so that it "
    "is a choice rather than an estimate. Barrier: share of the clients whose held-out "
    "loss rises above the straight line between both models somewhere on the segment, "
    "which the closed form assumes not to happen. Interval: mean width of the 90 % "
    "bootstrap interval over the samples."
)
_LEFT_OUT_EXPLAINED = "A client whose update is not finite is left out of that round."


def report(results: Results, folder: Path) -> Report:
    """The report of a run, with its figures written into a folder."""
    metric = metric_of(results)
    figures = drawing.illustrate(drawings(metric), results, folder)
    return Report(
        title=f"Potara: {results['experiment']}",
        lead=findings(results),
        sections=[
            Section("Methods", (table(results), *map(Text, privacy(results)))),
            *answers.sections(results),
            *figure_sections(figures),
            *_certainty_section(results),
            Section("Seconds of each phase", (seconds(results),)),
            Section("Clients left out", (Text(_LEFT_OUT_EXPLAINED), left_out(results))),
        ],
        settings=results["settings"],
        versions=results["versions"],
        summary=brief(results),
    )


def brief(results: Results) -> list[Table]:
    """The tables for a terminal: of the methods, and of what they write."""
    written = [answers.table(results)] if results.get("written") else []
    return [table(results, columns=BRIEF), *written]


def drawings(metric: Metric) -> dict[str, drawing.Drawing]:
    """The figures by the names of their files."""
    return {
        metric.name: scores(metric),
        "segment": SEGMENT,
        "damping": DAMPING,
        "communication": communication(metric),
        "clients": CLIENTS,
    }


def privacy(results: Results) -> list[str]:
    """What the noise of the federated rounds guarantees, if there is any."""
    settings = results["settings"]
    if settings.get("communication.privacy_clip") is None:
        return []
    epsilon = results["diagnostics"][0]["epsilon"]
    if epsilon is None:
        return ["Privacy: no account, as the server uses more than the clients' sum."]
    delta = settings["communication.privacy_delta"]
    return [
        "Differential privacy of a client in the federated rounds (replacing one "
        f"client by any other): epsilon {epsilon:.3g} at delta {delta:g}."
    ]


# --- The findings --------------------------------------------------------------------


def findings(results: Results) -> list[str]:
    """A sentence for each heterogeneity, about `potara core` or what stands for it.

    It says so if the method does not beat both of its parents.
    """
    metric, sentences = metric_of(results), []
    for group in grouped(summarise(results)).values():
        subject = _subject(group)
        if subject is not None:
            sentences.append(_sentence(subject, group, metric))
    return sentences


def _subject(summaries: list[Summary]) -> Summary | None:
    """`potara core`, else the first Potara, else the best method that is no parent."""
    fair = [s for s in summaries if not s.oracle and s.method not in PARENTS]
    core = [s for s in fair if s.method == "potara core"]
    potara = [s for s in fair if s.method.startswith("potara")]
    ranked = sorted(fair, key=lambda s: -s.mean)
    return next(iter([*core, *potara, *ranked]), None)


def _sentence(subject: Summary, group: list[Summary], metric: Metric) -> str:
    start = f"With {label(subject.heterogeneity)}, {subject.method}"
    mean, rival = metric.quantity(subject.mean), _rival(subject, group, metric)
    if subject.gain is None:
        return f"{start} reaches {_kind(metric)}{mean}{rival}."
    means = {other.method: metric.quantity(other.mean) for other in group}
    federated, local = (means[name] for name in PARENTS)
    against = f"{mean} against {federated} federated and {local} local"
    gains = round(subject.gain, 3 if metric.percent else 6) > 0
    verb = "reaches" if gains else "does not beat both of its parents:"
    margin = _margin(subject, metric)
    return f"{start} {verb} {_kind(metric)}{against}, {margin}{rival}."


def _kind(metric: Metric) -> str:
    return "" if metric.percent else f"a {metric.name} of "


def _margin(subject: Summary, metric: Metric) -> str:
    """The gain over the better parent, and whether it stands out from the seeds."""
    gain, deviation = subject.gain or 0.0, subject.gain_spread or 0.0
    difference = f"{metric.difference(gain)}{metric.points}"
    text = f"a gain of {difference} over the better parent"
    if subject.seeds == 1:
        return f"{text} (one seed, so the spread is unknown)"
    within = ", within the spread" if abs(gain) <= deviation else ""
    return (
        f"{text} (± {metric.deviation(deviation)} over {subject.seeds} seeds{within})"
    )


def _rival(subject: Summary, group: list[Summary], metric: Metric) -> str:
    """The best method that sees no test data, unless the sentence names it already."""
    others = [other for other in best(group) if other.method not in PARENTS]
    if not others or others[0].mean <= subject.mean:
        return ""
    top = others[0]
    score = metric.quantity(top.mean)
    return f"; the best method that sees no test data is {top.method} with {score}"


# --- The table of methods ------------------------------------------------------------


def table(results: Results, *, columns: tuple[str, ...] = COLUMNS) -> Table:
    """One row per method, grouped by heterogeneity; the best in each is marked."""
    metric, summaries = metric_of(results), summarise(results)
    return Table(
        [head(name, metric) for name in columns],
        [
            Group([_row(s, group, metric, columns) for s in group], label(name))
            for name, group in grouped(summaries).items()
        ],
        title=f"{metric.name.capitalize()} over clients: {over_seeds(summaries)}",
        notes=[*notes(summaries, metric), *[_COLUMNS_EXPLAINED] * (columns == COLUMNS)],
    )


def head(name: str, metric: Metric) -> str:
    """The head of a column."""
    newcomers = "Newcomers" + " %" * metric.percent
    return {"Score": metric.column, "Newcomers": newcomers}.get(name, name)


def _row(
    summary: Summary, group: list[Summary], metric: Metric, columns: tuple[str, ...]
) -> Row:
    by_name = cells(summary, metric)
    kind = "oracle" if summary.oracle else "best" if summary in best(group) else ""
    return Row([by_name[name] for name in columns], kind)


def cells(summary: Summary, metric: Metric) -> dict[str, Cell]:
    """A summary's cells by column."""
    name = f"{summary.method} {DAGGER}" if summary.oracle else summary.method
    weight, worst = summary.weight, summary.worst_decile
    return {
        "Method": Cell(name),
        "Score": _score(summary, metric),
        "Gain": _gain(summary, metric),
        "Worst 10 %": Cell(metric.text(worst), metric.shown(worst)),
        "Weight": Cell(MISSING if weight is None else f"{weight:.2f}", weight),
        "Bytes": _bytes(summary.bytes_up + summary.bytes_down),
        "Bytes up": _bytes(summary.bytes_up),
        "Bytes down": _bytes(summary.bytes_down),
        "Local steps": _count(summary.local_steps),
        "Parameters": _count(summary.inference_parameters),
        "Training s": Cell(f"{summary.seconds:,.1f}", summary.seconds),
    }


def _score(summary: Summary, metric: Metric) -> Cell:
    deviation = f" ± {metric.deviation(summary.spread)}" * (summary.seeds > 1)
    return Cell(metric.text(summary.mean) + deviation, metric.shown(summary.mean))


def _gain(summary: Summary, metric: Metric) -> Cell:
    if summary.gain is None or summary.gain_spread is None:
        return Cell(MISSING)
    deviation = f" ± {metric.deviation(summary.gain_spread)}" * (summary.seeds > 1)
    return Cell(metric.difference(summary.gain) + deviation, summary.gain)


def _bytes(number: float) -> Cell:
    return Cell(size(number), number)


def _count(number: float) -> Cell:
    return Cell(f"{number:,.0f}", number)


def notes(summaries: list[Summary], metric: Metric) -> list[str]:
    """Explanations of what occurs in the table."""
    gains = any(summary.gain is not None for summary in summaries)
    return [_gain_explained(metric)] * gains + oracle_notes(summaries)


def oracle_notes(summaries: list[Summary]) -> list[str]:
    """What an oracle is, if the table has one."""
    return [ORACLES] if any(summary.oracle for summary in summaries) else []


def _gain_explained(metric: Metric) -> str:
    over = "the better of federated and local in each seed"
    if metric.is_loss:
        return f"Gain: by how much the loss is below that of {over}."
    return f"Gain: over {over}" + ", in points" * metric.percent + "."


# --- Behind the table ----------------------------------------------------------------


def seconds(results: Results) -> Table:
    """The seconds of each phase, means over seeds, one row per heterogeneity."""
    runs = _by_heterogeneity(results, "seconds")
    phases = list(
        dict.fromkeys(p for each in runs.values() for run in each for p in run)
    )
    rows = []
    for name, each in runs.items():
        spent = [float(np.mean([run.get(p, 0.0) for run in each])) for p in phases]
        cells = [Cell(f"{value:,.1f}", value) for value in (*spent, sum(spent))]
        rows.append(Row((label(name), *cells)))
    return Table(("Heterogeneity", *phases, "total"), [Group(rows)])


def _certainty_section(results: Results) -> list[Section]:
    if not any("certainty" in entry for entry in results["diagnostics"]):
        return []
    parts = certainty(results), Text(_CERTAINTY_EXPLAINED)
    return [Section("How certain the weights are", parts)]


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


def _by_heterogeneity(results: Results, key: str) -> dict[str, list[Record]]:
    """One diagnostic of every seed."""
    groups: dict[str, list[Record]] = {}
    for entry in results["diagnostics"]:
        groups.setdefault(entry["heterogeneity"], []).append(entry[key])
    return groups
