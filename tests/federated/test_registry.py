import pytest

from potara_jax.federated.registry import RESERVED, algorithm, algorithms
from potara_jax.runs.loading import load_file
from tests.helpers_federated import problem, run, task, whole_batches

MINE = """
from potara_jax.federated import algorithm
from potara_jax.federated.algorithms.fedit import fedit

@algorithm("mine", "unpublished", "FedIT again")
def mine(task, train):
    return fedit(task, train)._replace(name="Mine")
"""


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("potara_jax.federated.registry._ENTRIES", dict(algorithms()))
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    load_file(path)
    return path


def test_a_users_algorithm_is_listed_and_runs(loaded):
    entry = algorithms()["mine"]
    assert entry.summary == "FedIT again"
    _, report = run(entry.make(task, whole_batches), problem(), number=2)
    assert report.finite.all()


def test_loading_a_file_again_replaces_what_it_registered(loaded):
    before = algorithms()["mine"].make
    load_file(loaded)
    assert algorithms()["mine"].make is not before


def test_a_name_is_registered_once(loaded):
    with pytest.raises(ValueError, match="'mine' is registered already"):
        algorithm("mine", "", "")(lambda task, train: None)


def test_algorithms_are_listed_by_name():
    assert list(algorithms()) == sorted(algorithms())
    assert len(algorithms()) >= 27


@pytest.mark.parametrize("name", ["base", "uniform", "potara core"])
def test_rows_of_every_comparison_are_no_algorithms(name):
    with pytest.raises(
        ValueError, match=f"cannot be called '{name}', which is another"
    ):
        algorithm(name, "-", "a test's")
    assert not RESERVED & set(algorithms())
