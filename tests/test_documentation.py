"""The documentation's Python runs as it stands, and its lists are the registries'."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from potara_jax.cli.main import main
from potara_jax.federated import registry as federated
from potara_jax.merging import registry as merging

ROOT = Path(__file__).parents[1]
QUICK = {
    "lora.rank": 2,
    "federated.rounds": 2,
    "local.rounds": 1,
    "training.steps": 2,
    "merging.samples": 4,
    "merging.grid-points": 3,
}


def blocks(name: str) -> list[str]:
    """A page's blocks of Python."""
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)


def block(name: str, text: str) -> str:
    """The block of a page that has a text in it."""
    (found,) = [code for code in blocks(name) if text in code]
    return found


def quick(**more: object) -> list[str]:
    """Options of a run of seconds."""
    options = QUICK | more
    return [word for k, v in options.items() for word in (f"--{k}", *str(v).split())]


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


def test_the_readme_s_quick_start_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "page"}
    for code in blocks("README.md"):
        exec(compile(code, "README.md", "exec"), scope)
    assert "hermite_bayes" in scope["result"].adapters


@pytest.fixture
def registries(monkeypatch):
    """What is registered in a test is forgotten after it."""
    for module, name in (
        (federated, "_ENTRIES"),
        (merging, "_MERGES"),
        (merging, "_WEIGHTS"),
    ):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))


@pytest.fixture
def wine(tmp_path, registries):
    """The page's experiment, with a table of three regions."""
    (tmp_path / "wine.py").write_text(block("docs/extend.md", "EXPERIMENT ="))
    rng = np.random.default_rng(0)
    region = np.repeat(np.arange(3), 40)
    classes = rng.integers(0, 3, 120)
    inputs = rng.normal(size=(120, 4)) + classes[:, None]
    rows = np.column_stack([inputs, classes, region])
    head = "a,b,c,d,class,region"
    np.savetxt(tmp_path / "wine.csv", rows, delimiter=",", header=head)
    return tmp_path


def test_an_experiment_and_all_that_is_registered_in_files_of_one_s_own(
    wine, monkeypatch
):
    monkeypatch.chdir(wine)
    for name, text in (("weight", "by_loss"), ("merge", "largest"), ("algo", "mine")):
        (wine / f"{name}.py").write_text(block("docs/extend.md", f'"{text}"'))
    load = "weight.py merge.py algo.py"
    run = ["wine.py", *quick(load=load, cache="cache")]
    methods = ["--merging.methods", "by_loss", "largest", "--cells.seeds", "0"]
    assert main(["run", *run, *methods]) == 0
    text = (wine / "runs/wine/clients.csv").read_text()
    assert "\nby_loss," in text and "\nlargest," in text
    assert main(["compare", *run, *methods, "--algorithms", "mine"]) == 0
    assert "\nmine," in (wine / "runs/compare-wine/clients.csv").read_text()
    assert main(["export", "runs/wine", "--method", "by_loss"]) == 2
    assert main(["export", "runs/wine"]) == 0


def test_the_reference_lists_what_is_registered():
    """`potara list --markdown` makes the page, behind its head."""
    command = [sys.executable, "-m", "potara_jax.cli.main", "list", "--markdown"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    page = (ROOT / "docs/reference.md").read_text()
    assert page.endswith(listed), "docs/reference.md is not what is registered"
    for entries in (federated.algorithms(), merging.merges(), merging.weights()):
        for name in entries:
            assert f"| `{name}` |" in page
