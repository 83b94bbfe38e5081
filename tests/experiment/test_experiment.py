"""An experiment is a value: it is changed, written down and made again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from potara_jax.cli import catalogue
from potara_jax.experiment.checks import require_at_least
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.settings import Cells, Lora, Pretraining
from potara_jax.jobs import Study, Table, preset


@dataclasses.dataclass(frozen=True)
class Source:
    """Where some data are."""

    data: tuple[Path, ...] = (Path("a"), Path("b"))
    folder: Path | None = None
    size: int = 3

    def check(self, experiment: Experiment) -> None:
        require_at_least(self, "source", experiment.cells.clients, "size")


def no_problem(experiment, resources):
    raise AssertionError("no problem is needed")


PLAIN = Experiment("plain", no_problem)
MINE = Experiment("mine", no_problem, source=Source(), cells=Cells(clients=2))


def test_settings_are_json_values_by_dotted_names():
    settings = MINE.settings()
    assert settings["cells.seeds"] == [0, 1, 2]
    assert settings["lora.rank"] == 8
    assert settings["source.data"] == ["a", "b"] and settings["source.folder"] is None
    assert json.loads(json.dumps(settings)) == settings
    groups = {name.split(".")[0] for name in settings}
    assert groups == {name for name, _ in MINE.groups()}
    assert "pretraining" not in groups
    assert "source" not in {name.split(".")[0] for name in PLAIN.settings()}


def test_one_setting_is_changed_and_the_others_stay():
    changed = MINE.set({"lora.rank": 4, "source.size": 5})
    assert (changed.lora.rank, changed.source.size) == (4, 5)
    assert (MINE.lora.rank, MINE.source.size) == (8, 3)
    differ = {
        n for n, value in changed.settings().items() if MINE.settings()[n] != value
    }
    assert differ == {"lora.rank", "source.size"}


def test_a_whole_group_is_replaced():
    changed = MINE.replace(lora=Lora(rank=4), pretraining=Pretraining(steps=7))
    assert changed.lora == Lora(rank=4) and changed.cells == MINE.cells
    assert changed.settings()["pretraining.steps"] == 7


@pytest.mark.parametrize(
    "name", ["lora.rnk", "rank", "lora", "lora.rank.x", "pretraining.steps", "name", ""]
)
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"no setting .*; choose from .*lora\.rank"):
        MINE.set({"lora.alpha": 2.0, name: 3})


# --- Written down and made again -----------------------------------------------------

CHANGES = {
    "cells.seeds": (4, 5),
    "cells.heterogeneity": ("tasks", "0.3"),
    "lora.whole": ("head",),
    "lora.alpha": 2.5,
    "communication.privacy_clip": 0.5,
    "compute.chunk": 3,
}


@pytest.mark.parametrize("name", catalogue.names())
def test_every_experiment_is_made_again_from_its_settings(name):
    experiment = catalogue.find(name)
    changed = experiment.set(CHANGES)
    written = json.loads(json.dumps(changed.settings()))
    assert experiment.restored(written) == changed
    assert changed != experiment


def test_paths_and_optional_values_are_made_again():
    changed = MINE.set({"source.folder": Path("c"), "source.data": ()})
    again = MINE.restored(json.loads(json.dumps(changed.settings())))
    assert again.source == Source((), Path("c"))
    assert changed.restored(MINE.settings()) == MINE


def test_entries_that_are_not_settings_are_ignored():
    assert MINE.restored({"job": "run", "lora.rank": 2}) == MINE.set({"lora.rank": 2})


def test_a_value_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"cells\.seeds is 5: it must be a tuple"):
        MINE.restored({"cells.seeds": 5})
    with pytest.raises(ValueError, match=r"source\.size is '3': it must be a whole"):
        MINE.restored({"source.size": "3"})


# --- Checks --------------------------------------------------------------------------


def test_the_source_is_checked_with_its_experiment():
    MINE.check()
    with pytest.raises(ValueError, match=r"source\.size is 3: it must be 4 or more"):
        MINE.set({"cells.clients": 4}).check()


def test_natural_clients_are_only_those_of_the_data():
    natural = MINE.replace(natural=True)
    natural.set({"cells.heterogeneity": ("natural",)}).check()
    with pytest.raises(ValueError, match=r"heterogeneity is 0\.1 0\.5: .* natural"):
        natural.check()
    for value in (("natural",), ("natural", "0.1")):
        with pytest.raises(ValueError, match="it must be other than natural"):
            MINE.set({"cells.heterogeneity": value}).check()


def test_a_cohort_drawn_by_examples_has_no_account_of_privacy():
    weighted = MINE.set({"participation.weighted": True})
    weighted.check()
    with pytest.raises(ValueError, match=r"participation\.weighted is on"):
        weighted.set({"communication.privacy_clip": 1.0}).check()


# --- Presets -------------------------------------------------------------------------


def test_an_experiment_overrides_a_jobs_presets():
    presets = {"study": {"cells.seeds": (7,), "lora.rank": 4}}
    given = preset(MINE.replace(presets=presets), Study())
    assert (given.cells.seeds, given.lora.rank) == ((7,), 4)
    assert given.merging.samples == Study.presets["merging.samples"]
    assert preset(MINE.replace(presets=presets), Table()).settings() == MINE.settings()
