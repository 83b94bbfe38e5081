"""The documentation's Python runs as it stands, and its lists are the registries'."""

import re
import subprocess
import sys
from pathlib import Path

from potara_jax.federated import registry as federated
from potara_jax.merging import registry as merging

ROOT = Path(__file__).parents[1]


def blocks(name: str) -> list[str]:
    """A page's blocks of Python."""
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)


def test_the_page_on_python_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "page"}
    for code in blocks("docs/python.md"):
        exec(compile(code, "docs/python.md", "exec"), scope)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert (tmp_path / "out/report/report.html").is_file()
    folders = list((tmp_path / "out/peft").rglob("adapter_config.json"))
    assert len(folders) == 4
    assert scope["losses"].shape == (4, 20)


def test_the_readmes_quick_start_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "page"}
    for code in blocks("README.md"):
        exec(compile(code, "README.md", "exec"), scope)
    assert "hermite_bayes" in scope["result"].adapters


def test_the_reference_lists_what_is_registered():
    """`potara list --markdown` makes the page, behind its head."""
    command = [sys.executable, "-m", "potara_jax.cli.main", "list", "--markdown"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    page = (ROOT / "docs/reference.md").read_text()
    assert page.endswith(listed), "docs/reference.md is not what is registered"
    for entries in (federated.algorithms(), merging.merges(), merging.weights()):
        for name in entries:
            assert f"| `{name}` |" in page
