import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from potara_jax.experiments.digits import Digits

from potara_jax.experiment import federating, tuning
from potara_jax.experiment.problem import Problem
from potara_jax.federated.conditions import Conditions
from potara_jax.federated.privacy import Privacy
from potara_jax.federated.registry import load_all
from potara_jax.federated.wire import AS_IT_IS
from tests.helpers_federated import problem as linear
from tests.helpers_federated import task

COUNTS = (4, 2, 1, 4)
SMALL = Digits(clients=4, local_steps=2, batch_size=4, rank=2)


def small_problem() -> Problem:
    given = linear(COUNTS)
    federation = SimpleNamespace(pool=given.shared.pool, train=given.examples)
    return Problem(
        task=task,
        base=given.shared.base,
        adapter=lambda key, rank=2: given.adapter,
        federations={("0.1", 0): federation},
    )


def settings(**values) -> Digits:
    return dataclasses.replace(SMALL, **values)


@pytest.mark.parametrize(
    ("cohort", "value"), [("0.5", 0.5), ("1.0", 1.0), ("1", 1), ("10", 10)]
)
def test_a_cohort_is_a_share_or_a_number(cohort, value):
    found = federating.conditions(settings(cohort=cohort)).cohort
    assert found == value and type(found) is type(value)


def test_conditions_are_the_settings():
    asked = settings(
        weighted_cohorts=True, dropout=0.1, stragglers=0.2, newcomers=0.3, cohort="2"
    )
    assert federating.conditions(asked) == Conditions(2, True, 0.1, 0.2, 0.3)


def test_the_wire_is_the_settings():
    assert federating.the_wire(SMALL) == AS_IT_IS
    coded = federating.the_wire(settings(compression="top_k", privacy_clip=0.5))
    assert coded.compression.feedback
    assert coded.privacy == Privacy(0.5, 1.0)


PERSONAL = {"ditto", "fedsa", "fedalt", "apfl", "local", "fdlora", "feddpa_t"}
COMMON = {"fedit", "ffa", "rolora", "fedprox", "fedex", "fedrpca", "scaffold", "flora"}
RANKS = dict.fromkeys(("fedalt", "feddpa_t", "fdlora", "fedex", "flora"))
RANKS |= {"pf2lora": 3}


@pytest.mark.parametrize("name", sorted(PERSONAL | COMMON))
def test_personal_algorithms_give_every_client_its_own_model(name):
    algorithm = federating.make(SMALL, task, name)
    assert federating.is_personal(algorithm, small_problem()) == (name in PERSONAL)


@pytest.mark.parametrize("name", load_all())
def test_models_that_can_be_merged_are_single_adapters_of_the_base(name):
    algorithm = federating.make(SMALL, task, name)
    found = federating.rank_of(algorithm, small_problem())
    assert found == RANKS.get(name, 2)


def phase(name, asked):
    algorithm = federating.make(asked, task, name)
    given = small_problem()
    return federating.federated_phase(asked, given, algorithm, name=name, last=3)


def test_epsilon_is_given_where_the_sum_is_all_that_is_taken():
    asked = settings(privacy_clip=1.0, privacy_noise=4.0)
    found = federating.epsilon(asked, phase("fedit", asked), small_problem())
    assert 0 < found < 30
    assert federating.epsilon(asked, phase("fedex", asked), small_problem()) is None
    assert federating.epsilon(SMALL, phase("fedit", SMALL), small_problem()) is None


def test_without_noise_epsilon_is_infinite():
    asked = settings(privacy_clip=1.0, privacy_noise=0.0)
    found = federating.epsilon(asked, phase("rolora", asked), small_problem())
    assert found == math.inf


def test_what_was_chosen_makes_every_algorithm():
    for name in load_all():
        assert tuning.make(SMALL, task, name).name


def test_a_local_rate_is_used_in_place_of_the_settings():
    given = linear(COUNTS)
    shared = given.shared
    for rate in (0.0, 0.1):
        train = federating.training(SMALL, rate or None)
        moved, _ = train(
            task.objective(shared.base),
            given.adapter,
            shared.pool,
            given.examples._replace(
                index=given.examples.index[0], count=given.examples.count[0]
            ),
            jax.random.key(0),
        )
        size = jnp.abs(moved["dense"]["b"] - given.adapter["dense"]["b"]).max()
        expected = (rate or SMALL.learning_rate) * SMALL.local_steps
        assert size == pytest.approx(expected, rel=0.2)
