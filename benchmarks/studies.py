"""Several studies in one table and one figure, as `docs/study.md` has them.

    python -m benchmarks.studies "digits=runs/study-digits" "tasks=runs/study-tasks" \\
        --out docs/study-regret.png

Each study is a name and the run folder of a `potara study`. The table, in Markdown, has
the regret of the default weight by the number of held-out samples, its least gain over
the better model, and the regret of other weights with 30 samples; a second table has
the balanced regrets, which the figure's second panel shows too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from potara_jax.merging import registry
from potara_jax.reports import drawing
from potara_jax.reports.estimates import Interval, Setting, settings_of
from potara_jax.reports.figures.study import NUMBER
from potara_jax.runs.folder import RunFolder

DEFAULT = registry.default(logits=True)
NUMBERS = 5, 10, 30, 100
POTARA = {
    "estimator": "potara",
    "samples": "train",
    "fisher": "empirical",
    "space": "core",
    "merge": "delta",
    "damping": "relative",
    "value": 0.3,
}
_heldout = lambda name: {"estimator": name, "samples": "heldout"}
OTHERS: dict[str, dict[str, Any]] = {
    **{name: _heldout(name) for name in ("hermite_bayes", "grid", "grid_pooled")},
    "Potara, training samples": POTARA,
    "uniform": {"estimator": "uniform"},
}
_SCORES: dict[str, Callable[[Setting], Interval | None]] = {
    "regret": lambda setting: setting.regret,
    "balanced regret": lambda setting: setting.balanced,
}
_COLOURS = "#0f766e", "#f59e0b", "#3b82f6", "#93c5fd", "#dc2626", "#9ca3af"
_MARKERS, _SPREAD = "osDd^v", 0.12
Study = list[Setting]


def read(folder: Path) -> Study:
    """All settings of a finished study. Raises `ValueError` if the folder has none."""
    results = RunFolder(folder, print).results() if folder.is_dir() else None
    if results is None or "estimates" not in results.get("cells", [{}])[0]:
        raise ValueError(f"{folder} holds no finished study")
    return settings_of(results)


def setting_of(study: Study, wanted: Mapping[str, Any], number: int) -> Setting | None:
    """The setting with some fields, measured on a number of samples or on none."""
    for setting in study:
        fields = setting.fields
        same = all(fields.get(name) == value for name, value in wanted.items())
        if same and fields.get("number", number) == number:
            return setting
    return None


def measured(
    study: Study,
    wanted: Mapping[str, Any],
    number: int,
    score: Callable[[Setting], Interval | None],
) -> Interval | None:
    """A score of `setting_of`, if both are known."""
    setting = setting_of(study, wanted, number)
    return score(setting) if setting else None


# --- Table ---------------------------------------------------------------------------

Value = Callable[[Study], float | None]
_LEAST = "least gain"  # over federations, this has no mean


def lines(studies: Mapping[str, Study]) -> Iterator[str]:
    """Both tables."""
    for title, score in _SCORES.items():
        columns = _columns(score)
        if title == "regret":
            columns[_LEAST] = _least_gain
        rows = {n: [of(s) for of in columns.values()] for n, s in studies.items()}
        by_column = zip(columns, zip(*rows.values(), strict=True), strict=True)
        rows["mean"] = [None if n == _LEAST else _mean(c) for n, c in by_column]
        yield f"\n| {title} | {' | '.join(columns)} |"
        yield "| --- |" + " ---: |" * len(columns)
        for name, row in rows.items():
            yield f"| {name} | {' | '.join(map(_number, row))} |"


def _columns(score: Callable[[Setting], Interval | None]) -> dict[str, Value]:
    """The default by the number of samples, and the others."""

    def column(wanted: Mapping[str, Any], number: int) -> Value:
        def value(study: Study) -> float | None:
            interval = measured(study, wanted, number, score)
            return interval.mean if interval else None

        return value

    of_default = {str(n): column(_heldout(DEFAULT), n) for n in NUMBERS}
    return of_default | {n: column(w, NUMBER) for n, w in OTHERS.items()}


def _least_gain(study: Study) -> float | None:
    setting = setting_of(study, _heldout(DEFAULT), NUMBER)
    return setting.worst_gain if setting else None


def _mean(column: Sequence[float | None]) -> float | None:
    known = [value for value in column if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "−")  # noqa: RUF001


# --- Figure --------------------------------------------------------------------------


def draw(studies: Mapping[str, Study]) -> Figure:
    """A panel for each score: a row for each study, and a mark for each weight."""
    figure = Figure(figsize=(11, 0.7 * len(studies) + 1.6), layout="constrained")
    panels = figure.subplots(1, len(_SCORES), sharey=True)
    for axes, (title, score) in zip(panels, _SCORES.items(), strict=True):
        _panel(axes, studies, score)
        axes.set_xlabel(f"{title}, in points")
    panels[0].set_yticks(range(len(studies)), list(studies))
    panels[0].invert_yaxis()
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _panel(
    axes: Axes,
    studies: Mapping[str, Study],
    score: Callable[[Setting], Interval | None],
) -> None:
    weights = {f"{DEFAULT} (default)": _heldout(DEFAULT), **OTHERS}
    for row, study in enumerate(studies.values()):
        for place, (name, wanted) in enumerate(weights.items()):
            interval = measured(study, wanted, NUMBER, score)
            mean, half = interval or (float("nan"), 0.0)
            axes.errorbar(
                mean,
                row + (place - (len(weights) - 1) / 2) * _SPREAD,
                xerr=half,
                fmt=_MARKERS[place],
                color=_COLOURS[place],
                markersize=7 if place == 0 else 5,
                zorder=3 if place == 0 else 2,
                label=None if row else name,
            )
        axes.axhline(row + 0.5, color="#eee", linewidth=1)
    axes.axvline(0, color=drawing.INK, linewidth=0.8)
    axes.tick_params(axis="y", length=0)


def main(words: Sequence[str]) -> int:
    """Print the tables and draw the figure; the exit status is 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies")
    parser.add_argument("studies", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, help="file of the figure, such as a.png")
    chosen = parser.parse_args(words)
    try:
        pairs = [word.partition("=") for word in chosen.studies]
        studies = {name: read(Path(folder)) for name, _, folder in pairs}
    except ValueError as error:
        print(f"studies: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(studies)))
    if chosen.out is not None:
        draw(studies).savefig(chosen.out, dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
