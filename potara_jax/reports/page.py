"""The frame of a report: one self-contained HTML page.

The page needs no network and no script: figures are embedded, styles are inline. It
reads on a phone, in the dark and on paper.
"""

from __future__ import annotations

import base64
import json
import pathlib
from collections.abc import Iterable, Mapping
from html import escape
from string import Template


def document(
    title: str, body: str, settings: Mapping[str, object], versions: Mapping[str, str]
) -> str:
    """A whole page around its `body`, which is HTML; `title` is text."""
    return _PAGE.substitute(
        title=escape(title),
        style=_STYLE,
        body=body,
        settings=_pairs(settings),
        versions=_pairs(versions),
    )


def paragraphs(texts: Iterable[str], *, kind: str) -> str:
    """Texts as paragraphs of a CSS class."""
    return "\n".join(f'<p class="{kind}">{_bound(text)}</p>' for text in texts)


def _bound(text: str) -> str:
    """Escaped text whose percent signs stay with their numbers."""
    return escape(text).replace(" %", "&nbsp;%")


def table(heads: Iterable[str], lines: Iterable[str]) -> str:
    """A table that scrolls by itself where the page is narrow; `lines` are HTML."""
    top = "".join(f'<th scope="col">{_bound(head)}</th>' for head in heads)
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table>\n<thead><tr>{top}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def line(texts: Iterable[str], *, kind: str = "") -> str:
    """A line of a table: a head, and its cells."""
    first, *rest = [escape(text) for text in texts]
    others = "".join(f"<td>{text}</td>" for text in rest)
    return f'<tr class="{kind}"><th scope="row">{first}</th>{others}</tr>'


def figure(path: pathlib.Path, title: str, caption: str) -> str:
    """A PNG file, embedded, with its title and caption."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">'
    return (
        f"<section>\n<h2>{escape(title)}</h2>\n<figure>\n"
        f'<div class="wide">{image}</div>\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>\n</section>\n"
    )


def _pairs(values: dict) -> str:
    lines = [line([str(name), _plain(value)]) for name, value in values.items()]
    return table(["Name", "Value"], lines)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


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
$body
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
