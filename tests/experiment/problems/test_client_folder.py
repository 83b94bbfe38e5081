"""The clients of a folder: who pre-trains the base, and who federates."""

from pathlib import Path

import pytest

from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problems import client_folder
from potara_jax.experiment.problems.client_folder import ClientFolder
from potara_jax.experiment.settings import Cells, Pretraining


@pytest.mark.parametrize(
    ("share", "clients", "number"),
    [
        *((0.3, 10, 3), (0.3, 20, 6), (0.01, 10, 1), (0.99, 10, 9), (0.5, 2, 1)),
        *((0.0, 10, 0), (1.0, 10, 0), (float("nan"), 10, 0)),
    ],
)
def test_a_share_of_the_clients_pretrains_the_base(share, clients, number):
    assert ClientFolder(upstream=share).num_upstream(clients) == number
    assert ClientFolder(upstream=share, checkpoint="x").num_upstream(clients) == 0


def folder_of(path: Path, number: int) -> Path:
    for client in range(number):
        (path / f"{client}.jsonl").touch()
    (path / ".hidden.jsonl").touch()
    (path / "notes.txt").touch()
    return path


def divided(folder: Path, *, clients: int, seed: int) -> client_folder.ClientPaths:
    experiment = Experiment(
        "",
        lambda *_: None,
        source=ClientFolder((folder,)),
        cells=Cells(clients=clients),
        pretraining=Pretraining(seed=seed),
    )
    return client_folder.divide(experiment)


def test_the_first_clients_that_the_base_has_not_seen_federate(tmp_path):
    folder = folder_of(tmp_path, 10)
    paths = divided(folder, clients=5, seed=0)
    assert (len(paths.upstream), len(paths.federated)) == (3, 5)
    others = sorted(set(client_folder.find([folder])) - set(paths.upstream))
    assert paths.federated == others[:5]
    assert divided(folder, clients=5, seed=0) == paths
    drawn = [divided(folder, clients=5, seed=seed).upstream for seed in range(5)]
    assert any(upstream != paths.upstream for upstream in drawn)
