"""An experiment's results as one self-contained HTML page.

The page needs no network and no script: figures are embedded, styles are inline. It
reads on a phone, in the dark and on paper.
"""

from __future__ import annotations

import base64
import json
import pathlib
from collections.abc import Iterable
from html import escape
from string import Template

import numpy as np

from potara_jax.evaluation.table import (
    COLUMNS,
    PARENTS,
    Results,
    Row,
    best,
    cells,
    grouped,
    label,
    notes,
    over_seeds,
    percent,
    points,
    summarise,
)

_CAPTIONS = {
    "accuracy": (
        "Accuracy",
        "Each client is tested on its own distribution; a method's accuracy is the "
        "mean over clients. Small dots are seeds, the large marker is their mean and "
        "the bar one standard deviation to each side. A method that gains from both "
        "models lies to the right of the dashed line, the better of the federated and "
        "the local one. Hollow markers are oracles.",
    ),
    "segment": (
        "Between the local and the federated model",
        "Each thin line is one client's loss on held-out samples while its merge "
        "weight goes from the local model (left) to the federated one (right). A curve "
        "that dips between its ends has something to gain from merging, and a good "
        "weight sits at its lowest point. The barrier is how far a curve rises above "
        "the straight line between its ends: at zero, the two models are linearly "
        "connected.",
    ),
    "damping": (
        "Sensitivity to the damping",
        "The closed-form weight rests on the inverse of the Fisher information, which "
        "damping keeps finite. Flat lines around the dashed one mean that the choice "
        "of damping matters little; a narrow band means that all clients get about the "
        "same weight, so that little is personalised.",
    ),
    "communication": (
        "Communication",
        "Accuracy after some rounds against the bytes that all clients have sent and "
        "received by then: up and to the left is better. Horizontal lines are methods "
        "that communicate nothing.",
    ),
    "clients": (
        "Who holds what",
        "A column is a client: its number of training examples above, its classes "
        "below, darker for more examples. Few dark cells in a column mean a client "
        "that sees few classes.",
    ),
}


# --- The page ------------------------------------------------------------------------


def render(results: Results, figures: list[pathlib.Path]) -> str:
    """The page as HTML.

    figures: PNG files, shown in this order; their names choose the captions.
    """
    rows = summarise(results)
    title = f"Potara: {results['experiment']}"
    return _PAGE.substitute(
        title=escape(title),
        style=_STYLE,
        summary=_paragraphs(summary(rows), kind="lead"),
        tables=_tables(rows),
        figures="".join(_figure(path) for path in figures),
        seconds=_seconds(results),
        left_out=_left_out(results),
        settings=_pairs(results["settings"]),
        versions=_pairs(results["versions"]),
    )


def _paragraphs(texts: Iterable[str], *, kind: str) -> str:
    return "\n".join(f'<p class="{kind}">{_bound(text)}</p>' for text in texts)


def _bound(text: str) -> str:
    """Escaped text whose percent signs stay with their numbers."""
    return escape(text).replace(" %", "&nbsp;%")


def _table(heads: Iterable[str], lines: Iterable[str]) -> str:
    """A table that scrolls by itself where the page is narrow; `lines` are HTML."""
    top = "".join(f'<th scope="col">{_bound(head)}</th>' for head in heads)
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table>\n<thead><tr>{top}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _line(texts: Iterable[str], *, kind: str = "") -> str:
    first, *rest = [escape(text) for text in texts]
    others = "".join(f"<td>{text}</td>" for text in rest)
    return f'<tr class="{kind}"><th scope="row">{first}</th>{others}</tr>'


# --- The summary ---------------------------------------------------------------------


def summary(rows: list[Row]) -> list[str]:
    """What came out, a sentence for each heterogeneity.

    It is about `Potara core`, or about another method where that one is missing, and
    says where the method does not beat both of its parents.
    """
    sentences = []
    for group in grouped(rows).values():
        subject = _subject(group)
        if subject is not None:
            sentences.append(_sentence(subject, group))
    return sentences


def _subject(rows: list[Row]) -> Row | None:
    """`Potara core`, else the first Potara, else the best method that is no parent."""
    fair = [row for row in rows if not row.oracle and row.method not in PARENTS]
    named = [row for row in fair if row.method == "Potara core"]
    kin = [row for row in fair if row.method.startswith("Potara")]
    ranked = sorted(fair, key=lambda row: -row.mean)
    return next(iter([*named, *kin, *ranked]), None)


def _sentence(row: Row, group: list[Row]) -> str:
    where = f"At {label(row.heterogeneity)}, {row.method}"
    mean, rival = f"{percent(row.mean)} %", _rival(row, group)
    if row.gain is None:
        return f"{where} reaches {mean}{rival}."
    means = {other.method: percent(other.mean) for other in group}
    federated, local = (means[name] for name in PARENTS)
    against = f"{mean} against {federated} % federated and {local} % local"
    verb = "reaches" if row.gain > 0 else "does not beat both of its parents:"
    return f"{where} {verb} {against}, {_margin(row)}{rival}."


def _margin(row: Row) -> str:
    """The gain over the better parent, and whether it stands out from the seeds."""
    gain = f"{points(row.gain)} points to the better parent"
    if row.seeds == 1:
        return f"{gain} (one seed, so the spread is unknown)"
    within = ", within the spread" if abs(row.gain) <= row.gain_spread else ""
    return f"{gain} (± {percent(row.gain_spread)} over {row.seeds} seeds{within})"


def _rival(row: Row, group: list[Row]) -> str:
    """The best method that sees no test data, where the sentence has not named it."""
    fresh = [other for other in best(group) if other.method not in PARENTS]
    if not fresh or fresh[0].mean <= row.mean:
        return ""
    top = fresh[0]
    return f"; the best without test data is {top.method}, {percent(top.mean)} %"


# --- Tables and figures --------------------------------------------------------------


def _tables(rows: list[Row]) -> str:
    parts = []
    for name, group in grouped(rows).items():
        lines = [_method_line(row, best(group)) for row in group]
        parts += [f"<h3>{escape(label(name))}</h3>", _table(COLUMNS, lines)]
    explained = [f"Accuracy: {over_seeds(rows)}, of the mean over clients.", _EXPLAINED]
    return "\n".join([*parts, _paragraphs([*explained, *notes(rows)], kind="note")])


_EXPLAINED = (
    "Worst 10 %: mean accuracy of the worst tenth of the clients. Weight: of the "
    "federated model in the merge, mean over clients. Bytes: of all clients and "
    "rounds. Local steps: of one client. Parameters: what a client's model adds to "
    "the base."
)


def _method_line(row: Row, winners: list[Row]) -> str:
    text = cells(row)
    kind = "oracle" if row.oracle else "best" if row in winners else ""
    return _line([text[name] for name in COLUMNS], kind=kind)


def _figure(path: pathlib.Path) -> str:
    title, caption = _CAPTIONS.get(path.stem, (path.stem, ""))
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">'
    return (
        f"<section>\n<h2>{escape(title)}</h2>\n<figure>\n"
        f'<div class="wide">{image}</div>\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>\n</section>\n"
    )


# --- How the run went ----------------------------------------------------------------


def _seconds(results: Results) -> str:
    """The phases' seconds, means over seeds, a line for each heterogeneity."""
    seconds: dict[str, list[dict]] = {}
    for entry in results["diagnostics"]:
        seconds.setdefault(entry["heterogeneity"], []).append(entry["seconds"])
    phases = list(
        dict.fromkeys(p for each in seconds.values() for s in each for p in s)
    )
    lines = []
    for name, each in seconds.items():
        spent = [float(np.mean([s.get(phase, 0.0) for s in each])) for phase in phases]
        texts = [f"{number:,.1f}" for number in [*spent, sum(spent)]]
        lines.append(_line([label(name), *texts]))
    return _table(["", *phases, "total"], lines)


def _left_out(results: Results) -> str:
    """Clients whose update was not finite, a line for each run and phase."""
    found: dict[tuple[str, ...], dict[int, list[int]]] = {}
    for entry in results["diagnostics"]:
        for one in entry["left_out"]:
            run = label(entry["heterogeneity"]), str(entry["seed"]), str(one["phase"])
            rounds = found.setdefault(run, {}).setdefault(one["client"], [])
            rounds.append(one["round"])
    if not found:
        return "<p>None: every update was finite.</p>"
    lines = [_line([*run, _of_rounds(clients)]) for run, clients in found.items()]
    return _table(["Heterogeneity", "Seed", "Phase", "Clients"], lines)


def _of_rounds(clients: dict[int, list[int]]) -> str:
    return ", ".join(
        f"client {client} (round {rounds[0]})"
        if len(rounds) == 1
        else f"client {client} ({len(rounds)} rounds, from {rounds[0]} on)"
        for client, rounds in clients.items()
    )


def _pairs(values: dict) -> str:
    lines = [_line([str(name), _plain(value)]) for name, value in values.items()]
    return _table(["Name", "Value"], lines)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


# --- The frame -----------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --paper: #fff; --faint: #5c6670;
  --line: #d9dee3; --band: #f4f6f8; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --paper: #15181c; --faint: #a0a9b2; --line: #343a41;
    --band: #1e2227; --accent: #6cb8ea; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 66rem; color: var(--ink);
  background: var(--paper); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .8rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p, figcaption { max-width: 46rem; }
.lead { font-size: 1.1rem; border-left: 4px solid var(--accent); padding-left: .8rem; }
.note, figcaption { color: var(--faint); font-size: .9rem; margin: .4rem 0; }
figure { margin: 0; }
.wide { overflow-x: auto; }
img { display: block; width: 100%; min-width: 38rem; height: auto; padding: .5rem;
  background: #fff; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
tr { background: var(--paper); }
th, td { padding: .28rem .7rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; padding-left: .3rem; background: inherit;
  position: sticky; left: 0; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom;
  white-space: normal; line-height: 1.25; }
tbody th { font-weight: normal; }
tbody tr:nth-child(even) { background: var(--band); }
.best th, .best th + td { font-weight: 700; }
.oracle { color: var(--faint); font-style: italic; }
.text td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.text th { text-align: left; }
summary { cursor: pointer; font-weight: 600; margin-top: 2rem; }
@media print {
  :root { --ink: #000; --paper: #fff; --faint: #444; --line: #bbb; --band: #f4f4f4; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  img { min-width: 0; border: 0; padding: 0; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .35rem; }
  section, tr { break-inside: avoid; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<h1>$title</h1>
$summary
<h2>Methods</h2>
$tables
$figures<h2>Seconds of each phase</h2>
$seconds
<h2>Clients left out</h2>
<p class="note">A client whose update is not finite is left out of its round.</p>
<div class="text">$left_out</div>
<details>
<summary>Settings and versions</summary>
<div class="text"><h3>Settings</h3>
$settings
<h3>Versions</h3>
$versions</div>
</details>
</body>
</html>
""")
