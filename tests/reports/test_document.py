from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from potara_jax.reports import document
from potara_jax.reports.document import (
    Cell,
    Figure,
    Group,
    Report,
    Row,
    Section,
    Table,
    Text,
    figure_sections,
)

HOSTILE = '<script>alert("x")</script>&'
IMAGE = b"\x89PNG image"


class Page(HTMLParser):
    """The tags of a page, its references, its text and its cells' values."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.references, self.text, self.values = [], [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href")]
        self.values += [value for name, value in attrs if name == "data-value"]

    def handle_data(self, data):
        self.text += data


def table(name="hermite", **options):
    rows = [
        Row(("base", Cell("50.0 ± 1.0", 50.0), Cell("–"))),  # noqa: RUF001
        Row((name, Cell("90.0 ± 1.0", 90.0), Cell("0.50", 0.5)), "best"),
        Row(("grid †", Cell("95.0 ± 1.0", 95.0), Cell("0.60", 0.6)), "oracle"),
    ]
    columns = ("Method", "Accuracy %", "Weight")
    return Table(columns, [Group(rows, "Dirichlet 0.1")], **options)


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(IMAGE)
    return Report(
        title="Potara: digits",
        lead=["It gains 5 % everywhere."],
        sections=[
            Section("Methods", (table(notes=["A note."]), Text("A text."))),
            *figure_sections([Figure(path, "Accuracy", "Dots are seeds.")]),
        ],
        settings={"cells.clients": 20, "merging.damping": "relative", "x": None},
        made_with={"jax": "0.10.2"},
    )


def shown(table, *, width=80, styles=False):
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True)
    console.print(document.terminal(table))
    return console.export_text(styles=styles)


# --- The page ------------------------------------------------------------------------


def test_the_page_is_one_file_that_needs_no_network(report):
    html = document.html(report)
    page = Page(html)
    (source,) = page.references
    start = "data:image/png;base64,"
    assert base64.b64decode(source.removeprefix(start)) == IMAGE
    assert not {"link", "iframe", "base", "object"} & set(page.tags)
    rest = re.sub(r'src="data:[^"]*"', "", html)
    assert not re.search(r"https?:|url\(|@import|src=|fetch|XMLHttp", rest)


def test_the_page_has_every_part_in_order(report):
    page = Page(document.html(report))
    texts = (
        *("Potara: digits", "It gains 5\u00a0% everywhere.", "Methods"),
        *("Dirichlet 0.1", "hermite", "90.0 ± 1.0", "A note.", "A text."),
        *("Accuracy", "Dots are seeds.", "Settings", "cells.clients", "20"),
        *("merging.damping", "relative", "x", "null", "Versions", "jax", "0.10.2"),
    )
    place = 0
    for text in texts:
        place = page.text.index(text, place)
    assert "details" in page.tags
    assert page.tags.count("img") == page.tags.count("figcaption") == 1


def test_tags_are_balanced(report):
    html = document.html(report)
    for tag in ("table", "tr", "td", "th", "div", "section", "figure", "h2", "p"):
        opened = len(re.findall(rf"<{tag}[ >]", html))
        assert opened == html.count(f"</{tag}>") > 0


def test_every_text_is_escaped(report):
    hostile = Report(
        title=HOSTILE,
        lead=[HOSTILE],
        sections=[
            Section(HOSTILE, (table(HOSTILE, title=HOSTILE), Text(HOSTILE))),
            *figure_sections([report.sections[1].parts[0]._replace(title=HOSTILE)]),
        ],
        settings={HOSTILE: [HOSTILE]},
        made_with={HOSTILE: HOSTILE},
    )
    page = Page(document.html(hostile))
    assert page.tags.count("script") == 1, "the page's own"
    assert page.text.count(HOSTILE) == 11


def test_rows_have_their_kinds_and_cells_what_they_are_sorted_by():
    html = table()._repr_html_()
    assert re.findall(r'<tr class="(\w+)">', html) == ["best", "oracle"]
    assert Page(html).values == ["50.0", "90.0", "0.5", "95.0", "0.6"]


def test_notebooks_get_a_fragment_without_a_script():
    page = Page(table(HOSTILE)._repr_html_())
    assert not {"html", "body", "script"} & set(page.tags)
    assert HOSTILE in page.text


def test_the_page_is_written_whole(report, tmp_path):
    folder = tmp_path / "new"
    path = document.write(report, folder)
    assert path == folder / "report.html"
    assert path.read_text() == document.html(report)
    assert list(folder.iterdir()) == [path]


# --- The terminal --------------------------------------------------------------------


def test_the_terminal_marks_oracles_and_the_best():
    text = shown(table(), styles=True)
    assert "\x1b[1mhermite" in text
    assert "\x1b[2mgrid †" in text
    assert "\x1b[1mbase" not in text


def test_the_terminal_has_title_groups_and_notes():
    lines = shown(table(title="Accuracy", notes=["First.", "Second."])).splitlines()
    texts = [line.strip() for line in lines]
    order = ["Accuracy", "Dirichlet 0.1", "First.", "Second."]
    assert [texts.index(text) for text in order] == sorted(map(texts.index, order))


def test_names_are_not_markup():
    assert "[red]x[/red]" in shown(table("[red]x[/red]"))


def test_long_texts_wrap():
    rows = [Row(("a", "word " * 60))]
    text = shown(Table(("Name", "Text"), [Group(rows)], text=True))
    assert text.count("word") == 60
    assert max(map(len, text.splitlines())) <= 80
