"""Which rows a table has, of all weights and merges that are registered."""

import dataclasses

import pytest

from potara_jax import merging
from potara_jax.clients.task import Task
from potara_jax.experiment.methods import (
    POTARA,
    all_methods,
    check,
    default_method,
    merged_methods,
)
from potara_jax.experiments import digits
from potara_jax.merging import registry
from tests.helpers_federated import task as of_classes

EXPERIMENT = digits.EXPERIMENT
ALL = {method.name: method for method in all_methods(EXPERIMENT)}
DEFAULT = "tempered_bayes"
ALWAYS = {POTARA, DEFAULT, "potara factor"}
WITH_INPUTS = of_classes._replace(inputs=lambda base, adapter, batch: {})
OF_LOSS = Task(logits=None, loss=of_classes.loss)


def names(task: Task, *methods: str) -> list[str]:
    experiment = EXPERIMENT.set({"merging.methods": methods})
    return [method.name for method in merged_methods(experiment, task)]


def test_every_registered_weight_and_merge_has_a_row():
    weights = {method.weighing.weight for method in ALL.values()}
    merges = {method.combination.merge for method in ALL.values()}
    assert weights == set(registry.weights()) and merges == set(registry.merges())
    assert len(ALL) == len(all_methods(EXPERIMENT))


def test_one_default_weight_is_that_of_the_library():
    method = default_method(EXPERIMENT, WITH_INPUTS)
    assert (method.name, method.weighing.samples) == (DEFAULT, "heldout")
    assert merging.auto(OF_LOSS.loss, WITH_INPUTS.logits).name == DEFAULT
    of_loss = default_method(EXPERIMENT, OF_LOSS)
    assert of_loss.name == merging.auto(OF_LOSS.loss).name == "hermite_bayes"
    for name in (DEFAULT, "hermite_bayes"):
        work = registry.Work(classes=100, modules=50)
        assert registry.weights()[name].passes(work) <= 5


def test_variants_of_a_merge_are_rows_in_other_spaces():
    assert ALL["ties (knots)"].combination.space == "knots"
    assert ALL["ties"].combination.merge == ALL["ties (knots)"].combination.merge


def test_merges_have_equal_weights_and_weights_the_linear_merge():
    assert ALL["ties"].weighing == ALL["uniform"].weighing
    assert ALL["grid"].combination.merge == "linear"


def test_all_rows_are_included_where_all_are_named():
    assert names(WITH_INPUTS, "all") == list(ALL)


def test_a_first_choice_is_included_by_default(monkeypatch):
    first = names(WITH_INPUTS)
    assert set(first) == {"uniform", "mix", "grid", "ties", "regmean", *ALWAYS}
    assert first == [name for name in ALL if name in first]
    of_users = registry.merges()["dare"]
    entry = dataclasses.replace(of_users, make=lambda: of_users.make())
    monkeypatch.setitem(registry._MERGES, "dare", entry)
    assert set(names(WITH_INPUTS)) == {*first, "dare"}
    assert "dare" not in names(WITH_INPUTS, "uniform")


def test_selected_rows_and_three_others_keep_their_order():
    selected = names(WITH_INPUTS, "ties", "uniform")
    assert set(selected) == {"uniform", "ties", *ALWAYS}
    assert selected == [name for name in ALL if name in selected]


def test_a_task_has_the_rows_whose_needs_it_meets():
    assert "regmean" not in names(of_classes, "regmean", "gauss_newton")
    assert "gauss_newton" in names(of_classes, "regmean", "gauss_newton")
    of_loss = names(OF_LOSS, "regmean", "gauss_newton", "grid")
    assert set(of_loss) == {"grid", "hermite_bayes", *ALWAYS} - {DEFAULT}
    texts = WITH_INPUTS._replace(sequences=True)
    assert "gauss_newton" not in names(texts, "all")


@pytest.mark.parametrize(
    ("selected", "other"), [("train", "heldout"), ("heldout", "train")]
)
def test_curvature_on_the_other_samples_is_a_row(selected, other):
    experiment = EXPERIMENT.set({"merging.curvature_on": selected})
    by_samples = {
        method.weighing.samples
        for method in all_methods(experiment)
        if method.name.startswith("potara core") and "module" not in method.name
    }
    assert by_samples == {selected, other}


def test_a_row_that_does_not_exist_is_refused():
    check(EXPERIMENT.set({"merging.methods": tuple(ALL)}))
    with pytest.raises(ValueError, match=r"merging\.methods is gird: .* of uniform,"):
        check(EXPERIMENT.set({"merging.methods": ("grid", "gird")}))
