import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from potara_jax.experiment import federating
from potara_jax.experiment.experiment import Experiment
from potara_jax.experiment.problem import Problem
from potara_jax.experiments import digits
from potara_jax.federated.conditions import Conditions
from potara_jax.federated.registry import algorithms
from potara_jax.federated.wire import AS_IT_IS, Privacy
from tests.helpers_federated import problem as linear
from tests.helpers_federated import start, task

COUNTS = (4, 2, 1, 4)
SMALL = digits.EXPERIMENT.set(
    {
        "cells.clients": 4,
        "training.steps": 2,
        "training.batch_size": 4,
        "lora.rank": 2,
    }
)


def small_problem() -> Problem:
    given = linear(COUNTS)
    federation = SimpleNamespace(pool=given.shared.pool, train=given.examples)
    return Problem(
        task=task,
        base=given.shared.base,
        adapter=lambda key, rank=2: given.adapter,
        federations={("0.1", 0): federation},
    )


def phase(name: str, experiment: Experiment):
    algorithm = federating.make_algorithm(experiment, task, name)
    given = small_problem()
    return federating.federated_phase(experiment, given, algorithm, name=name, last=3)


# --- Settings ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cohort", "value"), [("0.5", 0.5), ("1.0", 1.0), ("1", 1), ("10", 10)]
)
def test_a_cohort_is_a_share_or_a_number(cohort, value):
    made = federating.conditions(SMALL.set({"participation.cohort": cohort})).cohort
    assert made == value and type(made) is type(value)


def test_conditions_are_the_settings():
    settings = {"weighted": True, "dropout": 0.1, "stragglers": 0.2, "newcomers": 0.3}
    settings |= {"cohort": "2"}
    named = {f"participation.{name}": value for name, value in settings.items()}
    expected = Conditions(2, True, 0.1, 0.2, 0.3)
    assert federating.conditions(SMALL.set(named)) == expected


def test_the_wire_is_the_settings():
    assert federating.wire_of(SMALL) == AS_IT_IS
    settings = {"communication.compression": "top_k", "communication.privacy_clip": 0.5}
    coded = federating.wire_of(SMALL.set(settings))
    assert coded.compression.feedback
    assert coded.privacy == Privacy(0.5, 1.0)


def test_conditions_that_cannot_be_met_are_refused():
    federating.check(SMALL)
    with pytest.raises(ValueError, match="newcomers"):
        federating.check(SMALL.set({"participation.newcomers": 0.99}))


def test_marks_are_spread_evenly_up_to_the_last_round():
    assert federating.marks_of(10, 4) == [2, 5, 7, 10]
    assert federating.marks_of(2, 4) == [1, 2]
    assert federating.marks_of(5, 0) == []


# --- Algorithms ----------------------------------------------------------------------


def test_what_was_tuned_makes_every_algorithm():
    for name in algorithms():
        assert federating.tuned_algorithm(SMALL, task, name).name


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(ValueError, match=r"the algorithm is fedx: .* one of apfl,"):
        federating.make_algorithm(SMALL, task, "fedx")


def test_a_local_rate_is_used_in_place_of_the_settings():
    given = linear(COUNTS)
    shared, examples = given.shared, given.examples
    one = examples._replace(index=examples.index[0], count=examples.count[0])
    for rate in (None, 0.1):
        train = federating.training(SMALL, rate)
        moved, _ = train(
            task.objective(shared.base),
            given.adapter,
            shared.pool,
            one,
            jax.random.key(0),
        )
        size = jnp.abs(moved["dense"]["b"] - given.adapter["dense"]["b"]).max()
        expected = (rate or SMALL.training.learning_rate) * SMALL.training.steps
        assert size == pytest.approx(expected, rel=0.2)


# --- What an algorithm's model is ----------------------------------------------------

RANKS = dict.fromkeys(("fedalt", "feddpa_t", "fdlora", "fedex", "flora"))
RANKS |= {"pf2lora": 3}


@pytest.mark.parametrize("name", algorithms())
def test_models_that_can_be_merged_are_single_adapters_of_the_base(name):
    algorithm = federating.make_algorithm(SMALL, task, name)
    rank = federating.model_rank(algorithm, small_problem())
    assert rank == RANKS.get(name, 2)


@pytest.mark.parametrize("name", [*RANKS, "fedit"])
def test_only_a_single_adapter_of_the_rank_is_merged(name):
    experiment = SMALL.set({"federated.algorithm": name})
    if name == "fedit":
        federating.check_mergeable(experiment, small_problem())
        return
    with pytest.raises(ValueError, match=f"federated.algorithm is {name}: its model"):
        federating.check_mergeable(experiment, small_problem())


RANKED = SMALL.set({"federated.ranks": (2, 1)})


@pytest.mark.parametrize("name", ["flexlora", "flora", "hetlora"])
def test_ranks_are_dealt_to_the_clients(name):
    given = linear(COUNTS)
    algorithm = federating.make_algorithm(RANKED, task, name)
    ranks = start(algorithm, given).states
    assert jnp.ravel(ranks).tolist() == [2, 1, 2, 1]
    assert federating.make_algorithm(SMALL, task, name).name == algorithm.name


def test_ranks_that_clients_cannot_have_are_refused():
    federating.check_ranks(RANKED.set({"federated.algorithm": "flora"}))
    federating.check_ranks(SMALL)
    with pytest.raises(ValueError, match=r"fedit have one rank: .* flexlora, flora"):
        federating.check_ranks(RANKED)
    with pytest.raises(ValueError, match=r"federated.ranks is 3: it must be at most"):
        federating.check(SMALL.set({"federated.ranks": (3, 1)}))
    with pytest.raises(ValueError, match=r"federated.ranks is 0 1: it must be ranks"):
        SMALL.set({"federated.ranks": (0, 1)}).check()


def test_a_wire_that_makes_no_sense_for_an_algorithm_is_refused():
    sparse = SMALL.set({"communication.compression": "top_k"})
    for name in ("flora", "flexlora"):
        with pytest.raises(ValueError, match="choose bfloat16 or int8"):
            federating.make_algorithm(sparse, task, name)
    federating.make_algorithm(sparse, task, "hetlora")


# --- Privacy -------------------------------------------------------------------------


def private(noise: float) -> Experiment:
    return SMALL.set(
        {"communication.privacy_clip": 1.0, "communication.privacy_noise": noise}
    )


def test_epsilon_is_given_if_the_server_takes_only_the_sum():
    experiment = private(4.0)
    assert 0 < federating.epsilon(experiment, phase("fedit", experiment)) < 30
    assert federating.epsilon(experiment, phase("fedex", experiment)) is None
    assert federating.epsilon(SMALL, phase("fedit", SMALL)) is None


def test_an_algorithm_that_does_not_declare_it_is_refused_privacy():
    experiment, given = private(4.0), small_problem()
    declared = federating.make_algorithm(experiment, task, "fedit")
    undeclared = declared._replace(sum_only=None)
    federating.check_private(SMALL, undeclared)
    federating.check_private(experiment, declared)
    rounds = federating.federated_phase(
        experiment, given, undeclared, name="mine", last=3
    )
    for refused in (
        lambda: federating.check_private(experiment, undeclared),
        lambda: federating.epsilon(experiment, rounds),
    ):
        with pytest.raises(ValueError, match="sum_only"):
            refused()


def test_without_noise_epsilon_is_infinite():
    experiment = private(0.0)
    assert federating.epsilon(experiment, phase("rolora", experiment)) == math.inf
