"""Every client's results, for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from potara_jax.reports.formats import metric_of
from potara_jax.reports.summary import Record, Results, client_weights

_KEYS = ("method", "heterogeneity", "seed", "client")
_DETAILS = ("weight", "examples", "name")


def clients_csv(results: Results) -> str:
    """One line per method, heterogeneity, seed and client.

    `accuracy` is the score; it is left out if the score is the loss, which has its own
    column. `balanced` is the accuracy under equal shares of the client's classes; it is
    left out where examples have no classes. `weight` is the mean over modules if each
    has one, and empty for a method without weights. `examples` counts the client's
    training examples. `name` is the client's, or that of its most frequent class or
    task.
    """
    scores = _scores(results)
    entries = {(e["heterogeneity"], e["seed"]): e for e in results["diagnostics"]}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_KEYS, *scores, *_DETAILS))
    for record in results["methods"]:
        entry = entries.get((record["heterogeneity"], record["seed"]))
        writer.writerows(_lines(record, entry, scores))
    return text.getvalue()


def _scores(results: Results) -> tuple[str, ...]:
    """The scores that every record has, one a client."""
    if metric_of(results).is_loss:
        return ("loss",)
    balanced = all("balanced" in record for record in results["methods"])
    return ("accuracy", *["balanced"] * balanced, "loss")


def _lines(
    record: Record, entry: Record | None, scores: tuple[str, ...]
) -> Iterator[tuple[Any, ...]]:
    clients = range(len(record["loss"]))
    weights, empty = client_weights(record["weights"]), [""] * len(clients)
    columns = zip(
        clients,
        *(record[name] for name in scores),
        empty if weights is None else weights.tolist(),
        empty if entry is None else entry["counts"],
        empty if entry is None else _names(entry),
        strict=True,
    )
    key = record["method"], record["heterogeneity"], record["seed"]
    return ((*key, *line) for line in columns)


def _names(entry: Record) -> list[str]:
    """Every client's name, or its most frequent class or task; empty without names."""
    held = entry.get("held", {})
    if held.get("clients"):
        return list(held["clients"])
    names = held.get("names")
    if not names:
        return [""] * len(entry["counts"])
    return [names[shares.index(max(shares))] for shares in entry["proportions"]]
