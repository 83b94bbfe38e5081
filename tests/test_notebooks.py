"""The notebooks run from top to bottom in small form, and are kept with outputs."""

import importlib.util
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from tests.jobs.examples import forget_later

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
SMALL = {
    "quick_start": {"PRETRAINING": 20, "FEDERATED_ROUNDS": 2, "LOCAL_ROUNDS": 1},
    "merge_peft": {"STEPS": 20, "SITES": 3},
    "thousand_adapters": {"SITES": 6, "STEPS": 20, "PRETRAINING": 20},
    "add_algorithm_and_weight": {
        "PRETRAINING": 20,
        "FEDERATED_ROUNDS": 2,
        "LOCAL_ROUNDS": 1,
        "ALGORITHMS": ("median",),
    },
}


def code_cells(name: str) -> list[dict]:
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(name: str) -> dict[str, object]:
    """A notebook's variables after all cells, with small numbers as its parameters."""
    scope: dict[str, object] = {"__name__": f"notebook_{name}"}
    for number, cell in enumerate(code_cells(name)):
        place = f"{name}.ipynb, code cell {number}"
        exec(compile("".join(cell["source"]), place, "exec"), scope)
        if "parameters" in cell["metadata"].get("tags", []):
            assert SMALL[name].keys() <= scope.keys()
            scope |= SMALL[name]
    return scope


@pytest.fixture(autouse=True)
def without_traces(monkeypatch):
    """No windows, and nothing registered for the tests that follow."""
    plt.switch_backend("agg")
    forget_later(monkeypatch)
    yield
    plt.close("all")


def test_every_notebook_is_run_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_those_of_one_run_from_top_to_bottom(name):
    cells = code_cells(name)
    assert [c["execution_count"] for c in cells] == [*range(1, len(cells) + 1)]
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert "error" not in kinds
    plots = [o for c in cells for o in c["outputs"] if "image/png" in o.get("data", {})]
    drawn = sum("plt.show()" in "".join(cell["source"]) for cell in cells)
    assert len(plots) == drawn >= 2


def test_the_quick_start_runs():
    scope = run("quick_start")
    assert set(scope["rows"]) == {
        r["method"] for r in scope["result"].results["methods"]
    }


def test_merging_two_peft_adapters_runs():
    scope = run("merge_peft")
    assert scope["merged"]["second"]["a"].shape == (64, 8)
    assert all(0 <= weight <= 1 for weight in scope["weights"].values())


def test_a_thousand_adapters_run():
    scope = run("thousand_adapters")
    assert scope["outputs"].shape == (6, 200)
    assert scope["losses"].shape == (6, 20)


def test_adding_an_algorithm_and_a_weight_runs():
    results = run("add_algorithm_and_weight")["results"]
    assert "odds" in results["median"].adapters


def test_a_page_has_text_code_and_outputs():
    """Plots are files beside it, and links to notebooks lead to their pages."""
    spec = importlib.util.spec_from_file_location("hooks", FOLDER / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    image = {"data": {"image/png": "aGVsbG8=", "text/plain": "<Figure>"}}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "[next](b.ipynb)"]},
        {
            "cell_type": "code",
            "source": ["print(1)"],
            "outputs": [{"text": ["1\n"]}, image, {"data": {"text/plain": "\n"}}],
        },
    ]
    made = hooks.pages("notebooks/a", {"cells": cells})
    assert made["notebooks/a-0.png"] == b"hello"
    assert made["notebooks/a.md"] == (
        "# Title\n[next](b.md)\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n"
        "![](a-0.png)\n\n[Download this notebook](a.ipynb)\n"
    )
