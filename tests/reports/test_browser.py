"""The report's page in a browser, if there is one: its script, and a phone's width."""

import html
import json
import re
import shutil
import subprocess

import pytest

from potara_jax.reports import document
from potara_jax.reports.document import Cell, Group, Report, Row, Section, Table, Text

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
LONG = "a_very_long_name_without_any_space_" * 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no browser to look at a page with"),
]


def report(*, numbers=(30.0, 9.0, None, 100.0), name=LONG):
    cells = [Cell("–" if x is None else f"{x:g}", x) for x in numbers]  # noqa: RUF001
    rows = [Row((f"row {n} {name}", cell)) for n, cell in enumerate(cells * 3)]
    columns = ("Method", *(["Accuracy %"] * 12))
    wide = Table(columns, [Group([r._replace(cells=wider(r)) for r in rows], name)])
    parts = (wide, Text(name))
    return Report(name, [name], [Section(name, parts)], {name: name}, {"jax": name})


def wider(row):
    return (row.cells[0], *([row.cells[1]] * 12))


def measured(page, script, folder, *, width=390):
    """What a script returns that runs in a page which is `width` pixels wide."""
    frame = (
        f'<iframe srcdoc="{html.escape(page)}" style="width:{width}px;height:800px">'
    )
    outer = f"""<!DOCTYPE html>{frame}</iframe><pre></pre><script>
    onload = () => {{
      const view = document.querySelector("iframe").contentWindow;
      const page = view.document;
      const run = () => {{ {script} }};
      document.querySelector("pre").textContent = JSON.stringify(run());
    }};
    </script>"""
    (folder / "outer.html").write_text(outer)
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom")
    own = f"--user-data-dir={folder}/profile"
    command = [BROWSER, *options, own, (folder / "outer.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (text,) = re.findall(r"<pre>(.*?)</pre>", done.stdout, re.S)
    return json.loads(html.unescape(text))


def test_only_tables_and_figures_scroll_sideways_on_a_phone(tmp_path):
    page = document.html(report()).replace("<details>", "<details open>")
    script = """
    const root = page.documentElement, names = page.querySelectorAll("tbody th");
    const widest = Math.max(...[...names].map((each) => each.offsetWidth));
    const tables = [...page.querySelectorAll(".wide")];
    const scrolled = tables.map((each) => each.scrollWidth > each.clientWidth);
    return [root.scrollWidth - root.clientWidth, widest / root.clientWidth, scrolled];
    """
    beyond, names, scrolled = measured(page, script, tmp_path)
    assert beyond == 0
    assert names < 0.6, "the first column stays, and must leave room for others"
    assert scrolled == [True, False, False]


def test_a_click_sorts_and_words_hide_rows(tmp_path):
    script = """
    const table = page.querySelector("table"), box = page.querySelector(".filter");
    const column = (n) => [...table.rows].slice(1).map((r) => r.cells[n].textContent);
    const click = (n) => (table.tHead.rows[0].cells[n].firstChild.click(), column(n));
    const write = (words) => {
      box.value = words;
      box.dispatchEvent(new view.Event("input"));
      return [...table.rows].filter((r) => r.offsetHeight).length - 1;
    };
    const values = [click(1), click(1)];
    return [...values, click(0).map((text) => text.slice(0, 6)),
      ["ROW 1", "row 30", "nothing", ""].map(write)];
    """
    page = document.html(report(name="x"))
    down, up, names, left = measured(page, script, tmp_path, width=1200)
    numbers = ["9", "30", "100"]
    thrice = [each for each in numbers for _ in range(3)]
    assert down == [*reversed(thrice), *["–"] * 3]  # noqa: RUF001
    assert up == [*thrice, *["–"] * 3]  # noqa: RUF001
    assert [name.split()[1] for name in names] == [str(n) for n in range(12)]
    assert left == [5, 3, 0, 12]
