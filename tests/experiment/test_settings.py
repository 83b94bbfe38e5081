"""Wrong settings are refused by name, before anything is computed."""

import math

import pytest

from potara_jax.experiment.experiment import GROUPS
from potara_jax.experiment.settings import Cells
from potara_jax.experiments import digits

WRONG = {
    "cells.clients": 0,
    "cells.seeds": (1, 1),
    "cells.heterogeneity": ("much",),
    "lora.rank": 0,
    "lora.alpha": 0.0,
    "lora.targets": (),
    "training.steps": 0,
    "training.batch_size": 0,
    "training.learning_rate": 0.0,
    "training.weight_decay": -1.0,
    "federated.algorithm": "fedx",
    "federated.rounds": 0,
    "federated.longer_rounds": -1,
    "participation.cohort": "1.5",
    "participation.dropout": 1.0,
    "participation.stragglers": -0.1,
    "participation.newcomers": 2.0,
    "communication.top_k_share": 0.0,
    "communication.privacy_clip": 0.0,
    "communication.privacy_noise": -1.0,
    "communication.privacy_delta": 1.0,
    "local.rounds": -1,
    "merging.samples": 0,
    "merging.curvature": "auto",
    "merging.grid_points": 1,
    "merging.damping_value": -0.1,
    "pretraining.steps": -1,
    "pretraining.seed": -1,
    "pretraining.batch_size": 0,
    "pretraining.learning_rate": math.nan,
    "compute.chunk": 0,
    "source.depth": 0,
    "source.examples": 0,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_named_with_its_value_and_what_it_must_be(name):
    with pytest.raises(ValueError, match=f"{name} is .*it must be ") as caught:
        digits.EXPERIMENT.set({name: WRONG[name]}).check()
    assert "\n" not in str(caught.value)


def test_every_group_has_a_wrong_setting_above():
    assert {name.split(".")[0] for name in WRONG} == {*GROUPS, "source"}


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "", "shards0", "shards"])
def test_a_concentration_is_a_finite_number_above_zero(value):
    with pytest.raises(ValueError, match=r"cells\.heterogeneity"):
        digits.EXPERIMENT.set({"cells.heterogeneity": (value,)}).check()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["lora.alpha", "training.learning_rate"])
def test_numbers_are_finite(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        digits.EXPERIMENT.set({name: value}).check()


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_are_those_that_a_key_takes(seed):
    with pytest.raises(ValueError, match=f"cells.seeds is {seed}"):
        digits.EXPERIMENT.set({"cells.seeds": (0, seed)}).check()


def test_defaults_and_tasks_are_accepted():
    digits.EXPERIMENT.check()
    kinds = ("tasks", "0.05", "shards2")
    digits.EXPERIMENT.set({"cells.heterogeneity": kinds}).check()


def test_there_is_a_cell_for_each_heterogeneity_and_seed():
    cells = Cells(seeds=(3, 1), heterogeneity=("tasks", "0.5"))
    assert cells.keys == [("tasks", 3), ("tasks", 1), ("0.5", 3), ("0.5", 1)]
