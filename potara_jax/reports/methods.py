"""The report of a run: every method's score and cost, and diagnostics."""

from __future__ import annotations

import math
from pathlib import Path

from potara_jax.reports import answers, clients, diagnostics, drawing, findings
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
from potara_jax.reports.formats import (
    MISSING,
    Metric,
    label,
    made_with,
    metric_of,
    significant,
    size,
)
from potara_jax.reports.summary import (
    LARGEST_CLASS,
    Results,
    Summary,
    best,
    grouped,
    mean_of,
    of_seeds,
    over_seeds,
    summarise,
)

DAGGER = "†"
ORACLES = f"{DAGGER} Oracle: chosen among several weights on the test data."
_LARGEST_CLASS = (
    "Largest class: no model, always the class that a client's training examples have "
    "most often."
)
NO_NOISE = "Privacy: none, as communication.privacy_noise is 0."
BALANCED = "Balanced"
BALANCED_EXPLAINED = (
    "Balanced: accuracy with equal shares of each client's classes, mean over clients. "
    "What a method gains in accuracy and not here, it gains from the shares alone."
)
_SHARED = ("Method", "Score", BALANCED, "Gain", "Worst 10 %", "Weight")
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


def report(results: Results, folder: Path) -> Report:
    """The report of a run, with its figures written into a folder."""
    metric = metric_of(results)
    figures = drawing.illustrate(drawings(metric), results, folder)
    return Report(
        title=f"Potara: {results['experiment']}",
        lead=findings.sentences(results),
        sections=[
            Section("Methods", _first_parts(results)),
            *answers.sections(results),
            *figure_sections(figures),
            *clients.sections(results),
            *diagnostics.sections(results),
        ],
        settings=results["settings"],
        made_with=made_with(results),
    )


def _first_parts(results: Results) -> list[Table | Text]:
    texts = [*label_prior(results), *privacy(results)]
    return [table(results), *map(Text, texts)]


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


def label_prior(results: Results) -> list[str]:
    """What the correction by class shares does on held-out samples, if there is one."""
    sentences = []
    for name, runs in of_seeds(results, "label_prior").items():
        losses = (mean_of([run[key] for run in runs]) for key in ("plain", "corrected"))
        plain, corrected = losses
        helps = sum(run["corrected"] < run["plain"] for run in runs)
        used = sum(run["used"] for run in runs)
        sentences.append(
            f"With {label(name)}, correcting the federated model by the clients' class "
            "shares takes its calibrated loss on held-out samples from "
            f"{significant(plain)} to {significant(corrected)}, lower in {helps} of "
            f"{len(runs)} seeds. All merges begin with the corrected model in {used} "
            "of them (merging.label_prior)."
        )
    return sentences


def privacy(results: Results) -> list[str]:
    """What the noise of the federated rounds guarantees, if there is any."""
    settings = results["settings"]
    if settings.get("communication.privacy_clip") is None:
        return []
    if settings.get("communication.privacy_noise") == 0:
        return [NO_NOISE]
    epsilon = results["diagnostics"][0]["epsilon"]
    if epsilon is None:
        return ["Privacy: no account, as the server uses more than the clients' sum."]
    delta = settings["communication.privacy_delta"]
    return [
        "Differential privacy of a client in the federated rounds (replacing one "
        f"client by any other): epsilon {epsilon:.3g} at delta {delta:g}."
    ]


# --- The table of methods ------------------------------------------------------------


def table(results: Results, *, columns: tuple[str, ...] = COLUMNS) -> Table:
    """One row per method, grouped by heterogeneity; the best in each is marked."""
    metric, summaries = metric_of(results), summarise(results)
    shown = known_columns(columns, summaries)
    return Table(
        [head(name, metric) for name in shown],
        [
            Group([_row(s, group, metric, shown) for s in group], label(name))
            for name, group in grouped(summaries).items()
        ],
        title=f"{metric.name.capitalize()} over clients: {over_seeds(summaries)}",
        notes=[
            *notes(summaries, metric),
            *diagnostics.left_out_notes(results),
            *[_COLUMNS_EXPLAINED] * (columns == COLUMNS),
        ],
    )


def known_columns(
    columns: tuple[str, ...], summaries: list[Summary]
) -> tuple[str, ...]:
    """The columns, without that of the balanced accuracy if no method has one."""
    known = any(summary.balanced is not None for summary in summaries)
    return tuple(name for name in columns if known or name != BALANCED)


def head(name: str, metric: Metric) -> str:
    """The head of a column."""
    unit = " %" * metric.percent
    with_unit = {each: each + unit for each in (BALANCED, "Newcomers")}
    return ({"Score": metric.column} | with_unit).get(name, name)


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
        BALANCED: score_cell(summary.balanced, metric),
        "Gain": _gain(summary, metric),
        "Worst 10 %": Cell(metric.text(worst), metric.shown(worst)),
        "Weight": _weight(weight),
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


def score_cell(value: float | None, metric: Metric) -> Cell:
    """A score without its spread, or that it is missing."""
    if value is None:
        return Cell(MISSING)
    return Cell(metric.text(value), metric.shown(value))


def _gain(summary: Summary, metric: Metric) -> Cell:
    if summary.gain is None or summary.gain_spread is None:
        return Cell(MISSING)
    deviation = f" ± {metric.deviation(summary.gain_spread)}" * (summary.seeds > 1)
    return Cell(metric.difference(summary.gain) + deviation, summary.gain)


def _weight(weight: float | None) -> Cell:
    known = weight is not None and math.isfinite(weight)
    return Cell(f"{weight:.2f}" if known else MISSING, weight)


def _bytes(number: float) -> Cell:
    return Cell(size(number), number)


def _count(number: float) -> Cell:
    return Cell(f"{number:,.0f}", number)


def notes(summaries: list[Summary], metric: Metric) -> list[str]:
    """Explanations of what occurs in the table."""
    gains = any(summary.gain is not None for summary in summaries)
    explained = [_gain_explained(metric)] * gains + oracle_notes(summaries)
    return explained + balanced_notes(summaries) + class_notes(summaries)


def balanced_notes(summaries: list[Summary]) -> list[str]:
    """What the balanced accuracy is, if the table has it."""
    known = any(summary.balanced is not None for summary in summaries)
    return [BALANCED_EXPLAINED] * known


def oracle_notes(summaries: list[Summary]) -> list[str]:
    """What an oracle is, if the table has one."""
    return [ORACLES] if any(summary.oracle for summary in summaries) else []


def class_notes(summaries: list[Summary]) -> list[str]:
    """What the largest class is, if the table has it, and who does not beat it."""
    known = any(summary.method == LARGEST_CLASS for summary in summaries)
    return [_LARGEST_CLASS] * known + findings.unbeaten(summaries)


def _gain_explained(metric: Metric) -> str:
    over = "the better of federated and local in each seed"
    if metric.is_loss:
        return f"Gain: by how much the loss is below that of {over}."
    return f"Gain: over {over}" + ", in points" * metric.percent + "."
