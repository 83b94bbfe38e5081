"""What is installed is complete, and what is imported is declared."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUP = PROJECT["tool"]["setuptools"]
CODE = [*(ROOT / "potara_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
FIRST_PARTY = {"potara_jax", "benchmarks", "tests"}


def requirements(*extras: str) -> set[str]:
    """The normalised names of what is required, with some extras."""
    optional = PROJECT["project"]["optional-dependencies"]
    lines = [*PROJECT["project"]["dependencies"]]
    lines += [line for extra in extras for line in optional[extra]]
    return {normalised(re.match(r"[\w.-]+", line)[0]) for line in lines}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(path: Path) -> set[str]:
    """The top-level modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def third_party(path: Path) -> set[str]:
    return imported(path) - FIRST_PARTY - set(sys.stdlib_module_names)


PLACES = importlib.metadata.packages_distributions()


def distributions(module: str) -> set[str]:
    """The distributions that a module may come from; its name, if it is not here."""
    return {normalised(name) for name in PLACES.get(module, (module,))}


def test_every_package_is_installed():
    folders = {path.parent for path in (ROOT / "potara_jax").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    names |= {"potara_jax.experiments", "potara_jax.reports.templates"}
    assert names == set(SETUP["packages"])
    assert all((folder / "__init__.py").is_file() for folder in folders)
    assert SETUP["package-dir"]["potara_jax.experiments"] == "experiments"


def test_every_data_file_is_installed():
    kept = {
        path
        for package, patterns in SETUP["package-data"].items()
        for pattern in patterns
        for path in folder_of(package).glob(pattern)
    }
    places = (ROOT / "potara_jax", ROOT / "experiments")
    files = {path for place in places for path in place.rglob("*") if path.is_file()}
    others = {path for path in files if path.suffix not in (".py", ".pyc")}
    assert others == kept and kept


def folder_of(package: str) -> Path:
    if package == "potara_jax.experiments":
        return ROOT / "experiments"
    return ROOT.joinpath(*package.split("."))


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_is_declared(path):
    declared = requirements("experiments", "privacy", "flower")
    undeclared = {m for m in third_party(path) if not distributions(m) & declared}
    assert undeclared == set()


@pytest.mark.parametrize("package", ["adapters", "clients", "federated", "merging"])
def test_the_kernels_import_only_core_dependencies(package):
    """Beside what their functions import when they are called."""
    declared = requirements()
    for path in (ROOT / "potara_jax" / package).rglob("*.py"):
        tree = ast.parse(path.read_text())
        heads = (n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom))
        names = {imported_name(node) for node in heads}
        outside = names - FIRST_PARTY - set(sys.stdlib_module_names)
        assert all(distributions(name) & declared for name in outside), path


def imported_name(node: ast.Import | ast.ImportFrom) -> str:
    name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
    return name.split(".")[0]


def test_every_declared_dependency_is_imported():
    modules = {name for path in CODE for name in third_party(path)}
    used = {name for module in modules for name in distributions(module)}
    # tensorflow-datasets needs it and does not declare it; jax brings jaxlib.
    declared = requirements("experiments", "privacy", "flower")
    unused = declared - used - {"importlib-resources"}
    assert unused == set()


# --- In a fresh process --------------------------------------------------------------

HEAVY = (
    *("tensorflow_datasets", "tensorflow", "matplotlib", "tokenizers", "tyro"),
    *("jinja2", "sklearn", "scipy.stats", "orbax.checkpoint", "PIL"),
    "huggingface_hub",
)


def loaded_by(statement: str) -> set[str]:
    """The modules of `HEAVY` that a statement imports."""
    shown = f"print(*[name for name in {HEAVY} if name in sys.modules])"
    words = [sys.executable, "-c", f"import sys\n{statement}\n{shown}"]
    ended = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    return set(ended.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import potara_jax",
        "import potara_jax.merging",
        "import potara_jax.adapters",
        "import potara_jax.clients",
        "import potara_jax.federated",
        "from potara_jax import Federation, classification, objective, train_adapters",
    ],
)
def test_kernels_are_imported_alone(statement):
    assert loaded_by(statement) == set()


def test_experiments_are_imported_without_what_only_a_run_needs():
    statement = "import potara_jax.jobs, potara_jax.experiments.digits"
    assert loaded_by(statement) <= {"jinja2", "PIL", "scipy.stats"}


def test_every_public_name_can_be_imported():
    import potara_jax

    assert sorted(dir(potara_jax)) == sorted([*potara_jax.__all__, "__version__"])
    for name in potara_jax.__all__:
        assert getattr(potara_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = potara_jax.missing


def test_the_version_is_the_packages():
    import potara_jax

    assert potara_jax.__version__ == PROJECT["project"]["version"]
