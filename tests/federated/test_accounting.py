import math

import numpy as np
import pytest

from potara_jax.federated.accounting import account, check, epsilon
from potara_jax.federated.conditions import EVERYBODY, Conditions
from potara_jax.federated.privacy import Privacy
from potara_jax.federated.registry import algorithms
from potara_jax.federated.wire import AS_IT_IS, Wire
from tests.helpers_federated import task, whole_batches

PRIVATE = Wire(privacy=Privacy(1.0, 4.0))


def make(name):
    return algorithms()[name].make(task, whole_batches)


def test_epsilon_of_full_cohorts_is_that_of_the_gaussian_mechanism():
    """A round's Renyi divergence of order `x` is `x / (2 (noise / 2)^2)`."""
    found = epsilon(Privacy(1.0, 8.0), clients=10, cohort=10, rounds=5, delta=1e-5)
    orders = np.linspace(1.01, 100, 20000)
    divergence = 5 * orders / (2 * 4.0**2)
    slack = np.log1p(-1 / orders) - (np.log(1e-5) + np.log(orders)) / (orders - 1)
    assert found == pytest.approx((divergence + slack).min(), rel=0.01)


def test_epsilon_falls_with_noise_and_grows_with_rounds_and_cohorts():
    at = lambda noise=4.0, cohort=10, rounds=20: epsilon(
        Privacy(1.0, noise), clients=100, cohort=cohort, rounds=rounds, delta=1e-5
    )
    assert at(noise=8.0) < at() < at(rounds=40)
    assert at() < at(cohort=50) < at(cohort=100)
    assert at(noise=0) == math.inf


def accounted(algorithm, *, wire=PRIVATE, conditions=EVERYBODY):
    how = {"clients": 20, "rounds": 5, "delta": 1e-5}
    return account(algorithm, wire, conditions, **how)


def test_the_account_is_that_of_the_conditions():
    conditions = Conditions(cohort=0.25, newcomers=0.2)
    expected = epsilon(PRIVATE.privacy, clients=16, cohort=4, rounds=5, delta=1e-5)
    assert accounted(make("fedit"), conditions=conditions) == expected
    assert accounted(make("rolora"), conditions=conditions) == expected


def test_without_privacy_epsilon_is_infinite():
    assert accounted(make("fedit"), wire=AS_IT_IS) == math.inf


def test_an_algorithm_that_takes_more_than_the_sum_has_no_account():
    with pytest.raises(ValueError, match=r"FedEx-LoRA has no account.*sum_only=False"):
        accounted(make("fedex"))


def test_an_undeclared_algorithm_has_no_account():
    unknown = make("fedit")._replace(name="Mine", sum_only=None)
    with pytest.raises(ValueError, match=r"Mine does not declare.*set sum_only=True"):
        accounted(unknown)


def test_every_turn_must_take_the_sum_only():
    odd, even = make("rolora").turns
    mixed = make("rolora")._replace(turns=(odd, even._replace(sum_only=False)))
    with pytest.raises(ValueError, match="RoLoRA has no account"):
        check(mixed, EVERYBODY)


def test_cohorts_by_numbers_of_examples_have_no_account():
    with pytest.raises(ValueError, match="draw them uniformly"):
        accounted(make("fedit"), conditions=Conditions(by_examples=True))
