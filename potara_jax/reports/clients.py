"""Every client's results: for a spreadsheet, and the weights with their certainty."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from potara_jax.reports.document import Cell, Group, Row, Section, Table, Text
from potara_jax.reports.formats import MISSING, Metric, label, metric_of
from potara_jax.reports.summary import (
    PARENTS,
    Record,
    Results,
    by_heterogeneity,
    client_weights,
)

_KEYS = ("method", "heterogeneity", "seed", "client")
_DETAILS = ("weight", "examples", "name")
_CERTAINTY = ("low", "high", "gains")
_UNSURE = "unsure"
_MOST = 100  # clients of a table


def clients_csv(results: Results) -> str:
    """One line per method, heterogeneity, seed and client.

    `accuracy` is the score; it is left out if the score is the loss, which has its own
    column. `balanced` is the accuracy under equal shares of the client's classes; it is
    left out where examples have no classes. `weight` is the mean over modules if each
    has one, and empty for a method without weights. `examples` counts the client's
    training examples. `name` is the client's, that of what it does to its inputs, or
    that of its most frequent class or task. `low` and `high` are the ends of the
    weight's 90 % interval, and `gains` says whether some weight beats the better model
    with confidence; they are empty for methods that do not say, and left out if none
    does.
    """
    scores = _scores(results)
    entries, text = _entries(results), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    sure = any("interval" in record for record in results["methods"])
    writer.writerow((*_KEYS, *scores, *_DETAILS, *(_CERTAINTY if sure else ())))
    for record in results["methods"]:
        entry = entries.get((record["heterogeneity"], record["seed"]))
        writer.writerows(_lines(record, entry, scores, sure=sure))
    return text.getvalue()


def _scores(results: Results) -> tuple[str, ...]:
    """The scores that every record has, one a client."""
    if metric_of(results).is_loss:
        return ("loss",)
    balanced = all("balanced" in record for record in results["methods"])
    return ("accuracy", *["balanced"] * balanced, "loss")


def _lines(
    record: Record, entry: Record | None, scores: tuple[str, ...], *, sure: bool
) -> Iterator[tuple[Any, ...]]:
    clients = range(len(record["loss"]))
    weights, empty = client_weights(record["weights"]), [""] * len(clients)
    columns = zip(
        clients,
        *(record[name] for name in scores),
        empty if weights is None else weights.tolist(),
        empty if entry is None else entry["counts"],
        empty if entry is None else _names(entry),
        *(_certainty(record, empty) if sure else ()),
        strict=True,
    )
    key = record["method"], record["heterogeneity"], record["seed"]
    return ((*key, *line) for line in columns)


def _certainty(record: Record, empty: list[str]) -> tuple[list[Any], ...]:
    """The ends of every client's interval, and whether it gains."""
    low, high = record.get("interval", (empty, empty))
    return low, high, record.get("gains", empty)


def _names(entry: Record) -> list[str]:
    """Every client's name, or its most frequent class or task; empty without names."""
    held = entry.get("held", {})
    if held.get("clients"):
        return list(held["clients"])
    names = held.get("names")
    if not names:
        return [""] * len(entry["counts"])
    return [names[shares.index(max(shares))] for shares in entry["proportions"]]


# --- The weights of a method that says how sure it is --------------------------------


def sections(results: Results) -> list[Section]:
    """A table of the first seed's clients, if a method says how sure it is of them.

    Of several methods it is the first that says which clients gain, or else the last.
    """
    sure = [record for record in results["methods"] if "interval" in record]
    if not sure:
        return []
    shown = next((record for record in sure if "gains" in record), sure[-1])
    parts = table(results, shown["method"]), Text(_explained(shown))
    return [Section("Weights of clients", parts)]


def _explained(record: Record) -> str:
    text = (
        "The clients of the first seed, and the weight of the federated model that "
        f"{record['method']} gives them. Interval: from the 5 % to the 95 % quantile "
        "of the weight's posterior (of Potara: over bootstrap samples)."
    )
    if "gains" not in record:
        return text
    return (
        f"{text} Gains: {_UNSURE} where on the client's held-out samples no weight "
        "lowers the loss of the better model by more than 1.64 standard errors."
    )


def table(results: Results, method: str) -> Table:
    """A row for every client of the first seed, grouped by heterogeneity.

    Args:
      results: of a run.
      method: a row of the results that says how sure its weights are.
    """
    groups, entries, shown = [], _entries(results), _shown(results, method)
    for name, methods in by_heterogeneity(results).items():
        records = [methods[each][0] for each in shown]
        entry = entries.get((name, records[-1]["seed"]))
        rows = _client_rows(records, entry, metric_of(results))
        groups.append(Group(rows, label(name)))
    longest = max(len(rows) for rows, _ in groups)
    groups = [group._replace(rows=group.rows[:_MOST]) for group in groups]
    notes = [f"The first {_MOST} clients; clients.csv has all."] * (longest > _MOST)
    columns = ("Client", "Name", "Examples", *shown, "Weight", "Interval", "Gains")
    return Table(columns, groups, notes=notes)


def _shown(results: Results, method: str) -> list[str]:
    """Both parents, of those in the results, and a method."""
    names = {record["method"] for record in results["methods"]}
    return [*(name for name in PARENTS if name in names), method]


def _entries(results: Results) -> dict[tuple[str, int], Record]:
    """The diagnostics by cell."""
    return {(e["heterogeneity"], e["seed"]): e for e in results["diagnostics"]}


def _client_rows(
    records: Sequence[Record], entry: Record | None, metric: Metric
) -> list[Row]:
    """A row for every client, from records of one cell; the last has the weight."""
    last, number = records[-1], len(records[-1]["loss"])
    weights = client_weights(last["weights"])
    assert weights is not None, "a method that says how sure it is has weights"
    unknown = [MISSING] * number
    gains = [_gain(x) for x in last["gains"]] if "gains" in last else unknown
    columns = (
        [Cell(str(client), client) for client in range(number)],
        unknown if entry is None else _names(entry),
        unknown if entry is None else [Cell(f"{n:,}", n) for n in entry["counts"]],
        *([_score(x, metric) for x in record["accuracy"]] for record in records),
        [Cell(f"{weight:.2f}", weight) for weight in weights.tolist()],
        [_interval(*ends) for ends in zip(*last["interval"], strict=True)],
        gains,
    )
    return [Row(cells) for cells in zip(*columns, strict=True)]


def _score(value: float, metric: Metric) -> Cell:
    return Cell(metric.text(value), metric.shown(value))


def _interval(low: float, high: float) -> Cell:
    """An interval, sorted by its width."""
    return Cell(f"{low:.2f} to {high:.2f}", high - low)


def _gain(gains: bool) -> str:
    return "yes" if gains else _UNSURE
