"""A user's merges and weights that fail do so before anything is trained."""

import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.experiment import merges, trials
from potara_jax.experiment.problem import Resources
from potara_jax.experiments import digits
from potara_jax.jobs import Refused
from potara_jax.merging import Estimator, Measured, Merge, registry

SMALL = digits.EXPERIMENT.set(
    {
        "cells.seeds": (0,),
        "cells.heterogeneity": ("0.5",),
        "cells.clients": 3,
        "lora.rank": 2,
        "lora.whole": ("head",),
        "source.depth": 1,
        "pretraining.steps": 0,
    }
)


@pytest.fixture(scope="module")
def problem():
    return SMALL.make_problem(SMALL, Resources())


@pytest.fixture
def blank(monkeypatch):
    monkeypatch.setattr(registry, "_MERGES", dict(registry.merges()))
    monkeypatch.setattr(registry, "_WEIGHTS", dict(registry.weights()))


def with_weight(give):
    registry.weight(
        "mine",
        needs="nothing",
        samples="none",
        passes=lambda work: 0.0,
        summary="a test's",
        reference="-",
    )(lambda: Estimator("mine", give))
    return SMALL.set({"merging.methods": ("mine",)})


def with_merge(combine):
    registry.merge("mine", spaces=["core"], summary="a test's", reference="-")(
        lambda: Merge("mine", combine, ("core",))
    )
    return SMALL.set({"merging.methods": ("mine",)})


def half(client):
    return jnp.full_like(client.weight[0], 0.5)


RIGHT = [
    lambda client: Measured(half(client)),
    lambda client: Measured(dict.fromkeys(client.local, half(client))),
    lambda client: Measured((half(client), half(client))),
]


@pytest.mark.parametrize("give", RIGHT)
def test_a_weight_in_any_form_is_traced(give, problem, blank):
    trials.check_methods(with_weight(give), problem)


@pytest.mark.parametrize(
    ("give", "said"),
    [
        (lambda client: 0.5, "gives a bare value: return Measured"),
        (lambda client: None, "gives None"),
        (lambda client: half(client), "gives a bare value"),
        (lambda client: Measured(client.weight), "a weight of shape"),
        (lambda client: Measured({"other": half(client)}), "none for"),
        (lambda client: Measured(half(client) + jnp.ones(7)[:3]), "shape"),
        (lambda client: Measured(jnp.ones(3) + jnp.ones(4)), "TypeError"),
    ],
)
def test_a_weight_that_is_none_is_refused_with_its_file(give, said, problem, blank):
    with pytest.raises(
        ValueError, match=r"weight 'mine' of .*test_trials.py"
    ) as raised:
        trials.check_methods(with_weight(give), problem)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_line_that_fails_is_named(problem, blank):
    def give(client):
        return Measured(client.weights)  # there is no such field

    line = give.__code__.co_firstlineno + 1
    with pytest.raises(ValueError, match=f"line {line} of test_trials.py: Attribute"):
        trials.check_methods(with_weight(give), problem)


@pytest.mark.parametrize(
    ("combine", "said"),
    [
        (lambda arrays, weights, place: arrays[0].sum(), "mine"),
        (lambda arrays, weights, place: None, "mine"),
        (lambda arrays, weights, place: arrays[0][:1], "mine"),
        (lambda arrays: arrays[0], "TypeError"),
    ],
)
def test_a_merge_that_gives_no_adapter_is_refused(combine, said, problem, blank):
    with pytest.raises(ValueError, match=r"merge 'mine' of .*test_trials.py") as raised:
        trials.check_methods(with_merge(combine), problem)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_merge_of_the_users_is_traced(problem, blank):
    largest = lambda arrays, weights, place: jnp.maximum(*arrays)
    trials.check_methods(with_merge(largest), problem)


def test_rows_that_a_task_cannot_give_are_refused_by_name(problem):
    loss_only = problem._replace(
        task=problem.task._replace(logits=None, inputs=None, judge=None)
    )
    for name in ("regmean", "gauss_newton"):
        asked = SMALL.set({"merging.methods": ("uniform", name)})
        with pytest.raises(ValueError, match=f"names '{name}', which needs"):
            trials.check_methods(asked, loss_only)
    trials.check_methods(SMALL, loss_only)


@pytest.mark.parametrize("weight", [-0.01, 1.01, 2.0])
def test_a_weight_beyond_the_models_is_refused_unless_it_is_free(weight):
    values = np.array([0.5, weight, 1.0])
    for shape in (values, {"query": values}, (values, 1 - values)):
        with pytest.raises(Refused, match=r"the weight 'grid' is .* in \[0, 1\]"):
            merges.check_bounds("grid", shape)
    merges.check_bounds("lorahub", (values, values))


def test_a_weight_that_is_no_number_is_let_through():
    merges.check_bounds("grid", np.array([0.0, np.nan, 1.0 + 1e-7]))
