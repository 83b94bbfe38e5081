"""What language models write, as tables of `results["written"]`."""

from __future__ import annotations

from html import escape

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from potara_jax.reports import page
from potara_jax.reports.table import Results, label, percent, spread

_METRICS = {"exact_match": "Exact match %", "f1": "F1 %", "rouge_1": "ROUGE-1 %"}
_SHOWN = ("federated", "local", "potara core")
_MOST = 32
_EXPLAINED = (
    "By greedy decoding, of the test examples that have one answer and no options. "
    "Exact match and F1 are SQuAD's, against one answer, the first where there are "
    "several; ROUGE-1 is the F1 of all words. Means over clients."
)


def lines(results: Results) -> list[list[str]]:
    """Heterogeneity, method and every metric, over seeds; a line a method."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for record in results["written"]:
        key = record["heterogeneity"], record["method"]
        groups.setdefault(key, []).append(record)
    return [
        [label(name), method, *(_mean([r[m] for r in records]) for m in _METRICS)]
        for (name, method), records in groups.items()
    ]


def _mean(values: list[float]) -> str:
    more = f" ± {percent(spread(values))}" if len(values) > 1 else ""
    return f"{percent(float(np.mean(values)))}{more}"


def terminal_table(results: Results) -> Table:
    """For a terminal."""
    table = Table(box=box.SIMPLE_HEAD, title="What the models write")
    for name in ("Method", *_METRICS.values()):
        right = "right" if name.endswith("%") else "left"
        table.add_column(name, justify=right, no_wrap=True)
    for name, rows in _groups(results).items():
        table.add_row(Text(name, "italic"))
        for cells in rows:
            table.add_row(*map(Text, cells))
    return table


def _groups(results: Results) -> dict[str, list[list[str]]]:
    """By heterogeneity: a line a method, of its name and metrics."""
    groups: dict[str, list[list[str]]] = {}
    for name, *cells in lines(results):
        groups.setdefault(name, []).append(cells)
    return groups


def section(results: Results) -> list[str]:
    """Of the report: the table, and some answers; nothing where none are written."""
    if not results.get("written"):
        return []
    return [
        "<h2>What the models write</h2>",
        *_tables(results),
        page.paragraphs([_EXPLAINED], kind="note"),
        _samples(results),
    ]


def _tables(results: Results) -> list[str]:
    """A heading and a table a heterogeneity."""
    heads = ("Method", *_METRICS.values())
    return [
        f"<h3>{escape(name)}</h3>{page.table(heads, map(page.line, rows))}"
        for name, rows in _groups(results).items()
    ]


def _samples(results: Results) -> str:
    """The first answers of every client in the first run, side by side."""
    first = results["written"][0]
    same = lambda r: all(r[k] == first[k] for k in ("heterogeneity", "seed"))
    told = {r["method"]: r["samples"] for r in results["written"] if same(r)}
    told = {method: told[method] for method in _SHOWN if method in told}
    rows = [
        page.line([str(one["client"]), one["prompt"], one["right"], *texts])
        for one, *texts in zip(
            first["samples"],
            *([sample["written"] for sample in samples] for samples in told.values()),
            strict=True,
        )
    ]
    heads = ("Client", "Prompt", "Right", *map(escape, told))
    return f'<div class="text">{page.table(heads, rows[:_MOST])}</div>'
