"""A report as plain records, for a browser, a terminal and a notebook.

The page is one self-contained file: figures are embedded, styles and the script that
sorts and filters tables are inline. It needs no network, and reads on a phone, in the
dark, on paper and without the script.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jinja2
import rich.box
import rich.console
import rich.table
from rich.text import Text as Styled

from potara_jax.runs import files

PAGE = "report.html"
_NARROW = 20  # the terminal's first column keeps this width, or its longest text
_STYLES = {"": "", "best": "bold", "oracle": "dim"}


class Cell(NamedTuple):
    """A text, and the number that its column is sorted by."""

    text: str
    value: float | None = None


class Row(NamedTuple):
    """A line of a table; the first cell is its name."""

    cells: Sequence[Cell | str]
    kind: Literal["", "best", "oracle"] = ""

    @property
    def texts(self) -> list[str]:
        """The text of every cell."""
        return [cell if isinstance(cell, str) else cell.text for cell in self.cells]


class Group(NamedTuple):
    """Rows that are compared with each other, under a title."""

    rows: Sequence[Row]
    title: str = ""


@dataclasses.dataclass(frozen=True, repr=False)
class Table:
    """Rows in groups.

    Attributes:
      columns: their heads.
      groups: of rows.
      title: above the table.
      notes: below the table.
      text: whether the cells are texts, which wrap, rather than numbers.
    """

    columns: Sequence[str]
    groups: Sequence[Group]
    title: str = ""
    notes: Sequence[str] = ()
    text: bool = False

    def __rich__(self) -> rich.console.RenderableType:
        return terminal(self)

    def __repr__(self) -> str:
        return _plain_text(self)

    def _repr_html_(self) -> str:
        return _render("table_fragment.html.jinja", table=self)


class Figure(NamedTuple):
    """A PNG file with what it shows."""

    path: Path
    title: str
    caption: str

    @property
    def source(self) -> str:
        """The file as a data URI."""
        data = base64.b64encode(self.path.read_bytes()).decode("ascii")
        return f"data:image/png;base64,{data}"


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Section(NamedTuple):
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Table | Figure | Text]


@dataclasses.dataclass(frozen=True)
class Report:
    """The report of a job.

    Attributes:
      title: of the page.
      lead: its first paragraphs, the main findings.
      sections: everything else, in order.
      settings: of the run, by name.
      made_with: the software's versions, the device and the memory, by name.
    """

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    settings: Mapping[str, object]
    made_with: Mapping[str, str]

    @property
    def figures(self) -> list[Figure]:
        """The figures of all sections."""
        parts = [part for section in self.sections for part in section.parts]
        return [part for part in parts if isinstance(part, Figure)]


def figure_sections(figures: Sequence[Figure]) -> list[Section]:
    """A section for every figure."""
    return [Section(figure.title, (figure,)) for figure in figures]


def write(report: Report, folder: Path) -> Path:
    """Writes `report.html` into a folder, whole or not at all; returns its path."""
    path = folder / PAGE
    files.write_text(path, html(report))
    return path


# --- HTML ----------------------------------------------------------------------------


def html(report: Report) -> str:
    """The page."""
    return _render(
        "report.html.jinja",
        report=report,
        settings=_pairs(report.settings),
        made_with=_pairs(report.made_with),
    )


def _pairs(values: Mapping[str, object]) -> Table:
    rows = [Row((name, _plain(value))) for name, value in values.items()]
    return Table(("Name", "Value"), [Group(rows)], text=True)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _kind(part: Table | Figure | Text) -> str:
    return type(part).__name__


def _unbroken(text: str) -> str:
    """Keeps percent signs with their numbers."""
    return text.replace(" %", "\u00a0%")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("potara_jax.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"kind": _kind, "unbroken": _unbroken}
    return environment


def _render(template: str, **values: object) -> str:
    return _environment().get_template(template).render(values)


# --- Terminal ------------------------------------------------------------------------


def _plain_text(table: Table) -> str:
    """A table as text, for a prompt that knows no colours."""
    console = rich.console.Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(terminal(table))
    return captured.get()


def terminal(table: Table) -> rich.table.Table:
    """A table for `rich` to print: the best row is bold, and oracles are dim."""
    shown = rich.table.Table(
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title=Styled(table.title, "italic") if table.title else None,
        caption=Styled("\n".join(table.notes), "dim") if table.notes else None,
        caption_justify="left",
    )
    _add_columns(shown, table)
    for rows, title in table.groups:
        if title:
            shown.add_row(Styled(title, "italic"))
        for row in rows:
            shown.add_row(*(Styled(text, _STYLES[row.kind]) for text in row.texts))
        shown.add_section()
    return shown


def _add_columns(shown: rich.table.Table, table: Table) -> None:
    """The first column folds; numbers do not, and their heads take two lines."""
    first, *others = table.columns
    two_lines = not table.text and any(" " in name for name in others)
    names = [row.texts[0] for rows, _ in table.groups for row in rows]
    width = min(_NARROW, max(map(len, [first, *names])))
    above = "\n" * two_lines
    shown.add_column(Styled(above + first), overflow="fold", min_width=width)
    for name in others:
        if table.text:
            shown.add_column(Styled(name), overflow="fold")
        else:
            head = name.replace(" ", "\n", 1) if " " in name else above + name
            shown.add_column(Styled(head), justify="right", no_wrap=True)
