"""What language models write, as tables of `results["written"]`."""

from __future__ import annotations

import dataclasses

from potara_jax.reports.document import Group, Row, Section, Table, Text
from potara_jax.reports.formats import label, percent
from potara_jax.reports.summary import Groups, Record, Results, mean_of, spread

_METRICS = {"exact_match": "Exact match %", "f1": "F1 %", "rouge_1": "ROUGE-1 %"}
_COMPARED = ("federated", "local", "potara core")
_MAX_SAMPLES = 32
TITLE = "What the models write"
_EXPLANATION = (
    "Greedy decoding on the test examples that have one answer and no options. Exact "
    "match and F1 are SQuAD's, against one answer (the first if there are several); "
    "ROUGE-1 is the F1 of all words. Means over clients."
)


def table(results: Results) -> Table:
    """Every metric over seeds, one row per method, grouped by heterogeneity."""
    groups: Groups = {}
    for record in results["written"]:
        methods = groups.setdefault(record["heterogeneity"], {})
        methods.setdefault(record["method"], []).append(record)
    rows = [
        Group(
            [_row(method, records) for method, records in methods.items()], label(name)
        )
        for name, methods in groups.items()
    ]
    return Table(("Method", *_METRICS.values()), rows, title=TITLE)


def _row(method: str, records: list[Record]) -> Row:
    return Row((method, *(_cell([r[name] for r in records]) for name in _METRICS)))


def _cell(values: list[float]) -> str:
    deviation = f" ± {percent(spread(values))}" if len(values) > 1 else ""
    return f"{percent(mean_of(values))}{deviation}"


def sections(results: Results) -> list[Section]:
    """The table and some answers; empty if nothing was written."""
    if not results.get("written"):
        return []
    untitled = dataclasses.replace(table(results), title="")
    return [Section(TITLE, (untitled, Text(_EXPLANATION), _samples(results)))]


def _samples(results: Results) -> Table:
    """The first answers of every client in the first run, side by side."""
    first = results["written"][0]
    run = first["heterogeneity"], first["seed"]
    samples = {
        record["method"]: record["samples"]
        for record in results["written"]
        if (record["heterogeneity"], record["seed"]) == run
    }
    methods = [method for method in _COMPARED if method in samples]
    written = ([sample["written"] for sample in samples[method]] for method in methods)
    rows = [
        Row((str(sample["client"]), sample["prompt"], sample["right"], *texts))
        for sample, *texts in zip(first["samples"], *written, strict=True)
    ]
    columns = ("Client", "Prompt", "Right", *methods)
    return Table(columns, [Group(rows[:_MAX_SAMPLES])], text=True)
