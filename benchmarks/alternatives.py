"""What was tried beside the default weight: the trials that `docs/method.md` reports.

    python -m benchmarks.alternatives digits --cells.heterogeneity 0.1 0.5 tasks
    python -m benchmarks.alternatives digits --case prior modules

Any experiment whose examples have one label each, with any of its settings. Those of
`potara study` are the start, with seeds that have chosen things before and that no
table uses. Both models of a federation are trained once for all cases. Tables are of
regrets, as in `docs/study.md`, with 95 % t-intervals over seeds; see
`alternatives_cases` for the rows.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Literal

import tyro

from benchmarks import alternatives_cases as cases
from benchmarks.alternatives_cases import FOLDS, Rows, Trained, trained
from benchmarks.alternatives_modules import modules
from potara_jax import jobs
from potara_jax.cli import catalogue
from potara_jax.cli.jobs import CACHE
from potara_jax.cli.parsing import BARE, annotated
from potara_jax.experiment.context import Context
from potara_jax.experiment.experiment import Experiment
from potara_jax.jobs import Study
from potara_jax.jobs.job import Record
from potara_jax.reports.estimates import over_seeds

SEEDS = 100, 101, 102
Case = Literal["crossfit", "prior", "neighbour", "temperature", "modules"]
CASES: dict[Case, Callable[[Trained], Rows]] = {
    "crossfit": cases.crossfit,
    "prior": cases.prior,
    "neighbour": cases.neighbour,
    "temperature": cases.temperature,
    "modules": modules,
}


@dataclasses.dataclass(frozen=True)
class Alternatives(Study):
    """What was tried beside the default weight."""

    name: ClassVar[str] = "alternatives"
    case: tuple[Case, ...] = tuple(CASES)

    def rounds(self, experiment: Experiment) -> int:
        """The federated and the local ones, these again for every fold."""
        again = FOLDS * experiment.local.rounds if "crossfit" in self.case else 0
        return super().rounds(experiment) + again

    def run_cell(self, at: Context) -> Record:
        """All rows of the cases."""
        ready = trained(at)
        rows = {
            (case, name): value
            for case in at.progress.each(at.cell.name, self.case)
            for name, value in CASES[case](ready)
        }
        return {**at.cell._asdict(), "rows": rows}

    def summary(self, at: Context, record: Record) -> str:
        """That it is done."""
        return f"{at.cell.name} is done"


def lines(records: Sequence[Record]) -> Iterator[str]:
    """Markdown tables, one a case; the last column is of all heterogeneities."""
    columns = list(dict.fromkeys(record["heterogeneity"] for record in records))
    groups = [[r for r in records if r["heterogeneity"] == c] for c in columns]
    for case, rows in itertools.groupby(records[0]["rows"], lambda row: row[0]):
        yield f"\n| {case} | {' | '.join([*columns, 'mean'])} |"
        yield "| --- |" + " ---: |" * (len(columns) + 1)
        for row in rows:
            values = [interval(group, row) for group in (*groups, records)]
            yield f"| {row[1]} | {' | '.join(values)} |"


def interval(records: Sequence[Record], row: tuple[str, str]) -> str:
    """A row's mean, with its 95 % t-interval over seeds."""
    mean, half = over_seeds([(r["seed"], r["rows"][row]) for r in records])
    return f"{mean:.2f} ± {half:.2f}" if half else f"{mean:.2f}"


def parsed(words: Sequence[str]) -> tuple[Experiment, Alternatives]:
    """The experiment that is named first, with its settings, and the cases."""
    name, *options = words or [""]
    known = jobs.preset(catalogue.find(name), Study())
    start = known.set({"cells.seeds": SEEDS})
    groups, job = dict(start.groups()), Alternatives()
    bare = lambda name: name in ("job", "source")
    fields = [
        (
            name,
            annotated[type(x), BARE] if bare(name) else type(x),
            dataclasses.field(default=x),
        )
        for name, x in {"job": job, **groups}.items()
    ]
    kind = dataclasses.make_dataclass("Options", fields, frozen=True)
    chosen = tyro.cli(kind, args=options, prog="python -m benchmarks.alternatives")
    changed = {name: getattr(chosen, name) for name in groups}
    return start.replace(**changed), chosen.job


def main(words: Sequence[str]) -> int:
    """Print the tables of the cases; the exit status is 2 for a mistake."""
    try:
        result = jobs.run(*parsed(words), cache=CACHE)
    except ValueError as error:
        print(f"alternatives: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(result.results["cells"])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
