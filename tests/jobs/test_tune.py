import json

import pytest
from potara_jax.experiments.digits import Digits

from potara_jax.experiment import federating
from potara_jax.federated.registry import load_all
from potara_jax.jobs import run, tune
from tests.helpers_federated import task

TINY = {
    "seeds": 100,
    "heterogeneity": 0.5,
    "clients": 3,
    "federated-rounds": 2,
    "local-steps": 2,
    "samples": 4,
    "base-steps": 3,
    "targets": "query",
    "rank": 2,
    "algorithms": "ffa",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    words = [word for k, v in TINY.items() for word in (f"--{k}", str(v))]
    words += ["--out", str(folder / "run"), "--cache", str(folder / "cache")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "RATES", (1e-9, 0.3))
        assert run.main(["tune", "digits", *words]) == 0
    return folder / "run"


def test_the_best_trial_is_written_down(finished):
    results = json.loads((finished / "results.json").read_text())
    still, moving = results["trials"]
    assert [t["trial"]["local_rate"] for t in (still, moving)] == [1e-9, 0.3]
    assert still["mean"] != moving["mean"]
    best = max((still, moving), key=lambda t: t["mean"])["trial"]
    assert json.loads((finished / "tuned.json").read_text()) == {"ffa": best}


def test_every_algorithm_has_as_many_trials():
    assert {len(tune.trials(name)) for name in load_all() if name != "local"} == {4}


def test_trials_are_arguments_of_their_algorithms():
    for name in load_all():
        for how in tune.trials(name):
            assert federating.make(Digits(), task, name, **how)


def test_the_best_is_that_of_the_mean_over_cells():
    trial = lambda rate, mean: {
        "algorithm": "x",
        "trial": {"local_rate": rate},
        "mean": mean,
    }
    first = {"trials": [trial(1.0, 0.5), trial(2.0, 0.6)]}
    second = {"trials": [trial(1.0, 0.9), trial(2.0, 0.6)]}
    found = tune.results([first, second])
    assert found["best"] == {"x": {"local_rate": 1.0}}
    assert [t["mean"] for t in found["trials"]] == pytest.approx([0.7, 0.6])
