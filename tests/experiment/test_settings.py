"""Wrong settings are refused by name, before anything is computed."""

import dataclasses

import pytest
from potara_jax.experiments.digits import Digits

from potara_jax.experiment.settings import resolved

WRONG = {
    "rank": 0,
    "clients": 0,
    "cohort": "1.5",
    "dropout": 1.0,
    "stragglers": -0.1,
    "newcomers": 2.0,
    "top_k_share": 0.0,
    "privacy_clip": 0.0,
    "privacy_noise": -1.0,
    "privacy_delta": 1.0,
    "federated_rounds": 0,
    "local_rounds": -1,
    "local_steps": 0,
    "batch_size": 0,
    "learning_rate": 0.0,
    "weight_decay": -1.0,
    "alpha": 0.0,
    "samples": 0,
    "grid_points": 1,
    "damping_value": -0.1,
    "seeds": (1, 1),
    "heterogeneity": ("much",),
    "targets": (),
    "base_steps": -1,
    "chunk": 0,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_named_with_its_option_and_value(name):
    settings = dataclasses.replace(Digits(), **{name: WRONG[name]})
    option = "--" + name.replace("_", "-")
    with pytest.raises(ValueError, match=option) as caught:
        settings.check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", ""])
def test_a_concentration_is_a_finite_number_above_zero(value):
    with pytest.raises(ValueError, match="--heterogeneity"):
        Digits(heterogeneity=(value,)).check()


def test_defaults_and_tasks_are_accepted():
    Digits().check()
    Digits(heterogeneity=("tasks", "0.05")).check()


def test_the_resolved_configuration_leaves_out_what_does_not_change_results():
    config = resolved(Digits())
    assert {"out", "rerun", "cache"}.isdisjoint(config)
    assert config["seeds"] == [0, 1, 2]
    assert config["base_seed"] == 0
