"""`potara list` shows all that is registered, and what users' files register."""

import pytest

from potara_jax.cli import catalogue
from potara_jax.cli.main import main
from potara_jax.federated import registry as federated
from potara_jax.jobs import JOBS
from potara_jax.merging import registry as merging
from tests.jobs.examples import example, forget_later

ENTRIES = {
    "experiments": catalogue.names,
    "jobs": lambda: JOBS,
    "algorithms": federated.algorithms,
    "merges": merging.merges,
    "weights": merging.weights,
}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def unregistered(monkeypatch):
    """What a test registers is forgotten after it."""
    forget_later(monkeypatch)


def names(text: str) -> list[str]:
    """The first word of every line."""
    return [line.split()[0] for line in text.splitlines() if line.split()]


@pytest.mark.parametrize("kind", ENTRIES)
def test_all_of_a_kind_are_shown(kind, capsys):
    assert main(["list", kind]) == 0
    shown = names(capsys.readouterr().out)
    assert shown[0] == kind
    assert set(ENTRIES[kind]()) <= set(shown)


def test_all_kinds_are_shown_without_one(capsys):
    assert main(["list"]) == 0
    shown = names(capsys.readouterr().out)
    assert [name for name in shown if name in ENTRIES] == list(ENTRIES)
    assert {"digits", "study", "fedit", "ties", "hermite_bayes"} <= set(shown)


@pytest.mark.parametrize(
    ("heading", "kind", "name"),
    [
        ("A merge weight", "weights", "by_loss"),
        ("A merge", "merges", "largest"),
        ("A federated algorithm", "algorithms", "mine"),
    ],
)
def test_what_a_users_file_registers_is_shown(
    heading, kind, name, unregistered, tmp_path, capsys
):
    file = tmp_path / "mine.py"
    file.write_text(example(heading))
    assert main(["list", kind, "--load", str(file)]) == 0
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if line.split()[:1] == [name])
    assert "unpublished" in line


def test_a_file_that_cannot_be_loaded_is_refused(tmp_path, capsys):
    assert main(["list", "--load", str(tmp_path / "mine.py")]) == 2
    assert "mine.py does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ENTRIES)
def test_markdown_has_a_row_for_every_name(kind, capsys):
    assert main(["list", kind, "--markdown"]) == 0
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert title == f"## {kind.capitalize()}"
    assert len({row.count("|") for row in rows if row}) == 1
    assert all(any(f"| `{name}` |" in row for row in rows) for name in ENTRIES[kind]())
