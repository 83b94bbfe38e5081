"""Results over seeds, as rows for a terminal, for Markdown and for a spreadsheet.

Everything reads `results`, the dictionary of `results.json`. Its `methods` are records,
one a method, heterogeneity and seed; its `diagnostics` one a heterogeneity and seed.
"""

from __future__ import annotations

import csv
import io
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

Results = dict[str, Any]
Record = dict[str, Any]

PARENTS = ("federated", "local")
DAGGER = "†"
ORACLES = f"{DAGGER} Oracle: of some weights, the best on the test data."
GAIN = "Gain: over the better of federated and local in each seed, in points."
_SHARED = ("Method", "Accuracy %", "Gain", "Worst 10 %", "Weight")
_COSTS = ("Bytes up", "Bytes down", "Local steps", "Parameters", "Training s")
COLUMNS = (*_SHARED, *_COSTS)
_TERMINAL = (*_SHARED, "Bytes", "Local steps")
_MISSING = "–"  # noqa: RUF001


class Row(NamedTuple):
    """One method at one heterogeneity: means over seeds, of means over clients.

    spread, gain_spread: sample standard deviations over seeds, 0 for one seed.
    gain: over the better of both `PARENTS` in each seed; None where one is missing.
    weight: the mean merge weight; None for a method that has none.
    """

    heterogeneity: str
    method: str
    oracle: bool
    seeds: int
    mean: float
    spread: float
    worst_decile: float
    gain: float | None
    gain_spread: float | None
    weight: float | None
    bytes_up: float
    bytes_down: float
    local_steps: float
    inference_parameters: float
    seconds: float


# --- Aggregation ---------------------------------------------------------------------


def by_heterogeneity(results: Results) -> dict[str, dict[str, list[Record]]]:
    """The records of every seed, `{heterogeneity: {method: [record]}}`, in order."""
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in results["methods"]:
        methods = groups.setdefault(record["heterogeneity"], {})
        methods.setdefault(record["method"], []).append(record)
    return groups


def summarise(results: Results) -> list[Row]:
    """One row a heterogeneity and method, in the order of presentation."""
    return [
        _row(records, methods)
        for methods in by_heterogeneity(results).values()
        for records in methods.values()
    ]


def _row(records: list[Record], methods: dict[str, list[Record]]) -> Row:
    first, mean = records[0], lambda name: float(np.mean([r[name] for r in records]))
    gains = _gains(records, methods)
    return Row(
        heterogeneity=first["heterogeneity"],
        method=first["method"],
        oracle=first["oracle"],
        seeds=len(records),
        mean=mean("mean"),
        spread=spread([record["mean"] for record in records]),
        worst_decile=mean("worst_decile"),
        gain=float(np.mean(gains)) if gains else None,
        gain_spread=spread(gains) if gains else None,
        weight=_mean_weight(records),
        bytes_up=mean("bytes_up"),
        bytes_down=mean("bytes_down"),
        local_steps=mean("local_steps"),
        inference_parameters=mean("inference_parameters"),
        seconds=mean("seconds"),
    )


def spread(values: list[float]) -> float:
    """The sample standard deviation, 0 for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _gains(records: list[Record], methods: dict[str, list[Record]]) -> list[float]:
    """Each seed's accuracy less that of its better parent, for seeds that have both."""
    parents = [{r["seed"]: r["mean"] for r in methods.get(p, [])} for p in PARENTS]
    return [
        record["mean"] - max(parent[record["seed"]] for parent in parents)
        for record in records
        if all(record["seed"] in parent for parent in parents)
    ]


def _mean_weight(records: list[Record]) -> float | None:
    weights = [client_weights(record["weights"]) for record in records]
    return None if any(w is None for w in weights) else float(np.mean(weights))


def client_weights(weights: list | dict | None) -> np.ndarray | None:
    """One merge weight a client, `[C]`: the mean over modules where each has one."""
    if weights is None:
        return None
    if isinstance(weights, dict):
        return np.mean(np.asarray(list(weights.values()), np.float64), axis=0)
    return np.asarray(weights, np.float64)


def grouped(rows: list[Row]) -> dict[str, list[Row]]:
    """`{heterogeneity: rows}`, in order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.heterogeneity, []).append(row)
    return groups


def best(rows: list[Row]) -> list[Row]:
    """The most accurate of the rows that are no oracles: more than one in a draw."""
    fair = [row for row in rows if not row.oracle]
    top = max((row.mean for row in fair), default=0.0)
    return [row for row in fair if row.mean == top]


# --- Text ----------------------------------------------------------------------------


_NAMED = {"tasks": "one task a client", "own": "the clients' own data"}


def label(heterogeneity: str) -> str:
    """A heterogeneity's name: `0.1` is a Dirichlet concentration."""
    if heterogeneity in _NAMED:
        return _NAMED[heterogeneity]
    if heterogeneity.startswith("shards"):
        return f"{heterogeneity.removeprefix('shards')} shards a client"
    try:
        return f"Dirichlet {float(heterogeneity):g}"
    except ValueError:
        return heterogeneity


def cells(row: Row) -> dict[str, str]:
    """A row's text by column; accuracies are percentages, gains are points."""
    return {
        "Method": f"{row.method} {DAGGER}" if row.oracle else row.method,
        "Accuracy %": _with_spread(percent(row.mean), row.spread, seeds=row.seeds),
        "Gain": _gain(row),
        "Worst 10 %": percent(row.worst_decile),
        "Weight": _MISSING if row.weight is None else f"{row.weight:.2f}",
        "Bytes": size(row.bytes_up + row.bytes_down),
        "Bytes up": size(row.bytes_up),
        "Bytes down": size(row.bytes_down),
        "Local steps": f"{row.local_steps:,.0f}",
        "Parameters": f"{row.inference_parameters:,.0f}",
        "Training s": f"{row.seconds:,.1f}",
    }


def _gain(row: Row) -> str:
    if row.gain is None:
        return _MISSING
    return _with_spread(points(row.gain), row.gain_spread, seeds=row.seeds)


def _with_spread(text: str, deviation: float, *, seeds: int) -> str:
    return f"{text} ± {percent(deviation)}" if seeds > 1 else text


def percent(fraction: float) -> str:
    """A fraction in percent, with one decimal."""
    return f"{100 * fraction:.1f}"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * difference:+z.1f}".replace("-", "−")  # noqa: RUF001


def size(number: float) -> str:
    """A number of bytes in decimal units, with three digits."""
    units = ["GB", "MB", "kB", "B"]
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        units.pop()
    return f"{float(f'{number:.3g}'):g} {units[-1]}"


def over_seeds(rows: list[Row]) -> str:
    """What the numbers are: of one seed, or means with their spread over several."""
    most = max((row.seeds for row in rows), default=0)
    return f"mean ± standard deviation over {most} seeds" if most > 1 else "one seed"


# --- Tables --------------------------------------------------------------------------


def terminal_table(rows: list[Row]) -> Table:
    """A table with a section for each heterogeneity, for 80 columns and more.

    The best method that is no oracle is bold; oracles are dim.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.title = f"Accuracy over clients: {over_seeds(rows)}"
    table.caption = "\n".join(notes(rows))
    table.caption_justify = "left"
    table.add_column("\nMethod", overflow="fold")
    for name in _TERMINAL[1:]:
        heading = name.replace(" ", "\n", 1) if " " in name else f"\n{name}"
        table.add_column(heading, justify="right", no_wrap=True)
    for group in grouped(rows).values():
        _add_section(table, group)
    return table


def _add_section(table: Table, rows: list[Row]) -> None:
    winners = best(rows)
    table.add_row(Text(label(rows[0].heterogeneity), "italic"))
    for row in rows:
        style = "dim" if row.oracle else "bold" if row in winners else ""
        text = cells(row)
        table.add_row(*(Text(text[name], style) for name in _TERMINAL))
    table.add_section()


def notes(rows: list[Row]) -> list[str]:
    """What a reader of the table must know, of what occurs in it."""
    gains, oracles = any(r.gain is not None for r in rows), any(r.oracle for r in rows)
    return [GAIN] * gains + [ORACLES] * oracles


def markdown_table(rows: list[Row]) -> str:
    """A table for each heterogeneity, under its name, with the best method in bold."""
    parts = [
        f"**{label(name)}** ({over_seeds(group)})\n\n{_markdown(group)}"
        for name, group in grouped(rows).items()
    ]
    return "\n\n".join([*parts, *notes(rows)]) + "\n"


def _markdown(rows: list[Row]) -> str:
    winners = best(rows)
    lines = [list(COLUMNS), ["---"] + ["---:"] * (len(COLUMNS) - 1)]
    for row in rows:
        text = cells(row)
        texts = [_escape_markdown(text[name]) for name in COLUMNS]
        bold = 2 if row in winners else 0
        lines.append([f"**{text}**" for text in texts[:bold]] + texts[bold:])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape_markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")


# --- Every client --------------------------------------------------------------------

_CLIENT_FIELDS = (
    *("method", "heterogeneity", "seed", "client"),
    *("accuracy", "loss", "weight", "examples", "name"),
)


def clients_csv(results: Results) -> str:
    """Every client's results: a line a method, heterogeneity, seed and client.

    `weight` is the mean over modules where each has its own, and empty without one;
    `examples` are the client's training examples; `name` is its own, or what it holds
    most of.
    """
    entries = {(e["heterogeneity"], e["seed"]): e for e in results["diagnostics"]}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CLIENT_FIELDS)
    for record in results["methods"]:
        key = record["heterogeneity"], record["seed"]
        writer.writerows(_client_lines(record, entries.get(key)))
    return text.getvalue()


def _client_names(entry: dict) -> list[str]:
    held, proportions = entry.get("held", {}), entry.get("proportions", ())
    if held.get("clients"):
        return list(held["clients"])
    names = held.get("names")
    if not names:
        return [""] * len(entry["counts"])
    return [names[own.index(max(own))] for own in proportions]


def _client_lines(record: Record, entry: dict | None) -> list[tuple]:
    number = len(record["accuracy"])
    weights = client_weights(record["weights"])
    per_client = zip(
        range(number),
        record["accuracy"],
        record["loss"],
        [""] * number if weights is None else weights.tolist(),
        [""] * number if entry is None else entry["counts"],
        [""] * number if entry is None else _client_names(entry),
        strict=True,
    )
    start = record["method"], record["heterogeneity"], record["seed"]
    return [(*start, *line) for line in per_client]
