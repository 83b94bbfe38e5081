"""The report of a study of merge weights."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from potara_jax.reports import drawing
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
from potara_jax.reports.estimates import (
    FIELDS,
    Interval,
    Setting,
    best_damped,
    heterogeneities,
    mean_over_cells,
    rank,
    settings_of,
)
from potara_jax.reports.figures.study import NUMBER, drawings
from potara_jax.reports.formats import (
    MISSING,
    Metric,
    label,
    made_with,
    metric_of,
    signed,
    significant,
)
from potara_jax.reports.summary import Record, Results

BALANCED = "Balanced"
COLUMNS = (
    *("Weight", "Measured on", "Samples", "Regret", BALANCED, "To default"),
    *("Worst gain", "Passes"),
)
_MODELS = {
    "largest_class": "Largest class",
    "federated": "Federated",
    "with_prior": "With label prior",
    "local": "Local",
    "best_constant": "Best constant",
    "best_per_client": "Best per client",
}


def report(results: Results, folder: Path) -> Report:
    """The report of a study, with its figures written into a folder."""
    metric = metric_of(results)
    balanced = bool(results["cells"][0].get("balanced"))
    figures = drawings(metric, balanced=balanced)
    shown = drawing.illustrate(figures, results, folder)
    return Report(
        title=f"Which merge weight: {results['experiment']}",
        lead=[],
        sections=[
            *figure_sections(shown),
            Section("The models and the oracles", (models(results),)),
            Section("All weights", (Text(_explanation(metric)), table(results))),
        ],
        settings=results["settings"],
        made_with=made_with(results),
    )


def brief(results: Results) -> list[Table]:
    """The table for a terminal: weights of a few samples, and of none."""
    return [table(results, number=NUMBER, notes=[_explanation(metric_of(results))])]


def _explanation(metric: Metric) -> str:
    return (
        "Regret: against the best constant weight, an oracle"
        + f", in points of {metric.name}" * metric.percent
        + ". Balanced: the same with equal shares of each client's classes. To "
        "default: against the default weight on as many held-out samples. All are "
        "means over heterogeneities with 95 % intervals over seeds. Worst gain: over "
        "the better model, at the heterogeneity where it is least. Passes: "
        "forward-backward passes per sample. Of Potara's dampings the best is shown "
        "for each curvature; study.csv has all."
    )


def models(results: Results) -> Table:
    """Scores of both models and of the oracles, one row per heterogeneity.

    Where examples have classes, a second group has the scores under equal shares of
    each client's classes.
    """
    first = results["cells"][0]
    columns = {key: head for key, head in _MODELS.items() if key in first}
    groups = [_models(results, columns, lambda cell: cell)]
    if first.get("balanced"):
        title = "With equal shares of each client's classes"
        groups.append(_models(results, columns, _balanced)._replace(title=title))
    return Table(("Heterogeneity", *columns.values()), groups)


def _balanced(cell: Record) -> Record:
    """A cell's balanced scores, under the keys of the others."""
    prior = cell.get("balanced_with_prior")
    return cell["balanced"] | ({} if prior is None else {"with_prior": prior})


def _models(
    results: Results, columns: Iterable[str], of_cell: Callable[[Record], Record]
) -> Group:
    """A row for each heterogeneity: scores of models by column, if they are known."""
    metric, rows = metric_of(results), []

    def cell(name: str, key: str) -> Cell:
        if key not in of_cell(results["cells"][0]):
            return Cell(MISSING)
        mean = mean_over_cells(results, name, lambda cell: of_cell(cell)[key])
        return Cell(metric.text(mean), metric.shown(mean))

    for name in heterogeneities(results):
        rows.append(Row((label(name), *(cell(name, key) for key in columns))))
    return Group(rows)


def table(
    results: Results, *, number: int | None = None, notes: Sequence[str] = ()
) -> Table:
    """One row per weight: by samples and their number, the best first.

    Args:
      results: of a study.
      number: of samples, beside the weights that need none; default: all of them.
      notes: below the table.
    """
    shown = [
        setting
        for setting in best_damped(settings_of(results))
        if number is None or setting.fields.get("number", number) == number
    ]
    shown.sort(key=_place)
    known = any(setting.balanced is not None for setting in shown)
    columns = tuple(name for name in COLUMNS if known or name != BALANCED)
    by_name = [_cells(setting, metric_of(results)) for setting in shown]
    rows = [Row([cells[name] for name in columns]) for cells in by_name]
    return Table(columns, [Group(rows)], notes=notes)


def _place(setting: Setting) -> tuple[str, int, float]:
    fields = setting.fields
    return fields.get("samples", ""), fields.get("number", 0), -rank(setting)


def _cells(setting: Setting, metric: Metric) -> dict[str, Cell]:
    """A setting's cells by column."""
    fields, gain = setting.fields, setting.worst_gain
    number = fields.get("number", 0)
    return {
        "Weight": Cell(setting.name),
        "Measured on": Cell(fields.get("samples", "none")),
        "Samples": Cell(str(number), number),
        "Regret": _interval(setting.regret, metric),
        BALANCED: _interval(setting.balanced, metric),
        "To default": _interval(setting.to_default, metric),
        "Worst gain": Cell(f"{gain:+.1f}" if metric.percent else signed(gain), gain),
        "Passes": Cell(f"{setting.passes:.3g}", setting.passes),
    }


def _interval(interval: Interval | None, metric: Metric) -> Cell:
    if interval is None:
        return Cell("")
    mean, half = interval
    if metric.percent:
        return Cell(f"{mean:+.2f} ± {half:.2f}", mean)
    return Cell(f"{signed(mean)} ± {significant(half)}", mean)


def csv_text(results: Results) -> str:
    """One line per setting; score, weight and regret at every heterogeneity."""
    metric, names = metric_of(results), heterogeneities(results)
    score = "loss" if metric.is_loss else "accuracy"
    measured = (
        "regret",
        "regret_half",
        "balanced",
        "balanced_half",
        "to_default",
        "to_default_half",
        "worst_gain",
    )
    by_name = [
        f"{what}_{name}" for what in (score, "weight", "regret") for name in names
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FIELDS, *measured, "passes", *by_name])
    for s in settings_of(results):
        scores = [-s.scores[n] if metric.is_loss else s.scores[n] for n in names]
        fields = [s.fields.get(name, "") for name in FIELDS]
        rest = [values[n] for values in (s.weights, s.regrets) for n in names]
        default = s.to_default or ("", "")
        balanced = s.balanced or ("", "")
        differences = [*s.regret, *balanced, *default, s.worst_gain]
        writer.writerow([*fields, *differences, s.passes, *scores, *rest])
    return text.getvalue()
