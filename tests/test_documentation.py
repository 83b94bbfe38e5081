"""The documentation's Python runs as it stands, and its lists are the registries'."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from potara_jax.experiments import digits
from potara_jax.federated import accounting, stack
from potara_jax.federated import registry as federated
from potara_jax.federated.privacy import Privacy
from potara_jax.merging import registry as merging
from potara_jax.runs import folder
from tests import helpers_federated
from tests.merging import toy

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SHOWING = ("examples", "hosts")
SMALL = {
    "lora.rank": 2,
    "lora.targets": ("query",),
    "training.steps": 2,
    "merging.samples": 4,
    "merging.grid_points": 3,
    "merging.methods": ("uniform",),
    "merging.curvature": "empirical",
}


def blocks(name: str) -> list[str]:
    """A page's blocks of Python."""
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)


def test_the_page_on_python_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """Its experiment trains smaller adapters, weighs on few samples, merges once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits, "EXPERIMENT", digits.EXPERIMENT.set(SMALL))
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
    assert "tempered_bayes" in scope["result"].adapters
    page = (ROOT / "docs/run-folder.md").read_text()
    results = scope["result"].results
    for name in [*results, *results["methods"][0]]:
        assert f"`{name}`" in page or f'"{name}"' in page, name


def test_the_files_of_a_run_folder_are_listed():
    page = (ROOT / "docs/run-folder.md").read_text()
    for name in (*folder._FOLDERS, *folder._FILES):
        assert f"`{name}" in page, name


def test_the_page_on_privacy_has_the_right_epsilons():
    page = (ROOT / "docs/privacy.md").read_text()
    sizes = ((20, 20, 40), (1000, 50, 40), (10_000, 200, 50))
    for noise, *shown in re.findall(r"\| (\d) \| (.+) \| (.+) \| (.+) \|", page):
        privacy = Privacy(clip=0.5, noise=float(noise))
        for (clients, cohort, rounds), text in zip(sizes, shown, strict=True):
            size = {"clients": clients, "cohort": cohort, "rounds": rounds}
            assert f"{accounting.epsilon(privacy, **size, delta=1e-5):.1f}" == text


def test_the_page_on_privacy_names_the_algorithms_with_an_account():
    page = (ROOT / "docs/privacy.md").read_text().split("## Which algorithms")[1]
    named = set(re.findall(r"`(\w+)`", page)) - {"sum_only"}
    made = {
        name: entry.make(helpers_federated.task, helpers_federated.whole_batches)
        for name, entry in federated.algorithms().items()
        if name != "local"
    }
    accounted = {
        name
        for name, one in made.items()
        if all(turn.sum_only for turn in one.turns or (one,))
    }
    wrong = sorted(named ^ accounted)
    assert not wrong, f"docs/privacy.md, 'Which algorithms': add or remove {wrong}"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    pages |= {f"notebooks/{p.stem}.md" for p in (ROOT / "docs").rglob("*.ipynb")}
    assert {page for page in pages if f": {page}" not in navigation} == set()


def test_every_example_is_shown_on_a_page():
    pages = "".join((ROOT / f"docs/{page}.md").read_text() for page in SHOWING)
    for path in (ROOT / "examples").glob("*.py"):
        assert f'\n--8<-- "examples/{path.name}"\n' in pages, path


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_the_page_on_many_clients_runs():
    """On a linear model and four clients, in place of the reader's."""
    shared, examples, adapter = helpers_federated.problem()
    algorithm = helpers_federated.ALGORITHMS["FedIT"]
    scope: dict[str, object] = {
        "one_client": lambda base, adapter, examples: examples,
        "algorithm": algorithm,
        "adapters": stack(adapter, clients=4),
        "adapter": adapter,
        "shared": shared,
        "examples": examples,
        "key": jax.random.key(0),
    }
    for code in blocks("docs/scale.md"):
        exec(compile(code, "docs/scale.md", "exec"), scope)
    assert scope["step"].number == 99
    same = helpers_federated.run(algorithm, helpers_federated.problem(), number=100)
    helpers_federated.assert_close(scope["step"].progress.server, same[0].server)


class Attention(nn.Module):
    """Two projections, as the page on merging adapts them."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(8, name="query")(x) * nn.Dense(8, name="value")(x)


def test_the_page_on_merging_runs():
    """On a toy client, and on two copies of it, in place of the reader's."""
    scope: dict[str, object] = {"federated": toy.FEDERATED, "local": toy.LOCAL}
    one, weights, certainty, lora = blocks("docs/merging.md")
    exec(compile(one.replace("rank=8", "rank=2"), "docs/merging.md", "exec"), scope)
    assert scope["merged"]["one"]["a"].shape == (toy.INPUTS, 4)
    scope |= {
        "federated": stack(toy.FEDERATED, clients=2),
        "local": stack(toy.LOCAL, clients=2),
        "base": toy.CLIENT.base,
        "logits": toy.one_example,
        "images": jnp.stack([toy.EXAMPLES[0]] * 2),
        "labels": jnp.stack([toy.EXAMPLES[1]] * 2),
        "counts": jnp.array([toy.SAMPLES, 5]),
        "train_counts": jnp.array([40.0, 20.0]),
    }
    for code in (weights, certainty):
        exec(compile(code, "docs/merging.md", "exec"), scope)
    assert scope["merged"].weight.shape == scope["low"].shape == (2,)
    model, inputs = Attention(), jnp.ones((1, 9))
    base = model.init(jax.random.key(0), inputs)["params"]
    scope |= {"model": model, "inputs": inputs, "base": base}
    exec(compile(lora, "docs/merging.md", "exec"), scope)
    adapted = scope["apply"](scope["base"], scope["adapter"], inputs)
    np.testing.assert_allclose(adapted, model.apply({"params": base}, inputs))


def test_the_reference_lists_what_is_registered():
    """`potara list --markdown` makes the page, behind its head."""
    command = [sys.executable, "-m", "potara_jax.cli.main", "list", "--markdown"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    page = (ROOT / "docs/reference.md").read_text()
    assert page.endswith(listed), "docs/reference.md is not what is registered"
    for entries in (federated.algorithms(), merging.merges(), merging.weights()):
        for name in entries:
            assert f"| `{name}` |" in page
