"""What every registered merge and weight keeps to, a user's included."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax import merging
from potara_jax.experiment import methods, rows
from potara_jax.experiments import digits
from potara_jax.merging import Estimator, Measured, Merge, registry
from potara_jax.merging.registry import Variant, Work
from potara_jax.merging.spaces import SPACES
from tests.merging.toy import CLIENT, FEDERATED, INPUTS, LOCAL, logits, loss
from tests.merging.toy import one_example as logits_of_one

MERGES, WEIGHTS = registry.merges(), registry.weights()
WORK = Work(classes=10, modules=4, points=11, steps=7)
GRAMS = [{path: jnp.eye(INPUTS) for path in FEDERATED}] * 2


@pytest.fixture
def blank(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_MERGES", dict(MERGES))
    monkeypatch.setattr(registry, "_WEIGHTS", dict(WEIGHTS))


def build(name, **options):
    return WEIGHTS[name].build(
        loss=loss,
        logits=logits,
        likelihood=merging.exact(logits_of_one),
        options=options,
    )


# --- All entries ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MERGES, *WEIGHTS])
def test_an_entry_says_what_it_does_and_where_it_was_published(name):
    entry = (MERGES | WEIGHTS)[name]
    assert entry.name == name
    assert entry.summary and entry.reference
    assert "\n" not in entry.summary


@pytest.mark.parametrize("name", MERGES)
def test_a_merge_is_as_it_is_registered(name):
    entry = MERGES[name]
    method = entry.make(GRAMS) if entry.needs == "grams" else entry.make()
    assert (method.name, method.spaces) == (name, entry.spaces)
    assert entry.variants[0] == Variant(name, entry.spaces[0])
    for variant in entry.variants:
        out = merging.merge(
            (FEDERATED, LOCAL), method=method, space=variant.space, key=CLIENT.key
        )
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(out))


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_measures_and_merges_in_its_space(name):
    estimator, entry = build(name), WEIGHTS[name]
    assert estimator.name == name
    samples = merging.Samples(
        jax.tree.map(lambda x: x[None], CLIENT.examples), jnp.array([10])
    )
    pair = jax.tree.map(lambda x: x[None], (FEDERATED, LOCAL))
    program = merging.personalise(estimator, space=entry.space)
    out = program(CLIENT.base, *pair, samples, jnp.array([40.0]), CLIENT.key)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(out.adapter))
    assert (out.curvature is not None) == (entry.needs == "likelihood")


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_looks_at_no_sample_costs_nothing_and_all_else_something(name):
    entry = WEIGHTS[name]
    cost = entry.passes(WORK)
    assert np.isfinite(cost) and cost >= 0
    assert (cost == 0) == (entry.samples == "none") == (entry.needs == "nothing")


def test_costs_are_counted_in_forward_and_backward_passes():
    costs = {name: entry.passes(WORK) for name, entry in WEIGHTS.items()}
    assert costs["potara"] == costs["fisher"] == pytest.approx(2 * 21 / 3)
    assert WEIGHTS["potara"].passes(WORK._replace(classes=1)) == pytest.approx(2)
    assert costs["hermite"] == costs["hermite_bayes"] == pytest.approx(4 / 3)
    assert costs["grid"] == costs["grid_pooled"] == pytest.approx(11 / 3)
    assert costs["gauss_newton"] == pytest.approx(3 * 6 / 3)
    assert costs["learned"] == pytest.approx(7)
    assert costs["soup"] == pytest.approx(1)


def test_the_weight_from_measured_curvature_is_the_weight():
    measured = jax.jit(build("fisher").measure)(CLIENT)
    again = WEIGHTS["fisher"].from_curvature(measured.curvature, CLIENT.trained_on)
    for x, y in zip(*map(jax.tree.leaves, (measured.weight, again)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


def test_options_are_those_of_the_function():
    assert MERGES["ties"].options == {"density": 0.2, "scale": 1.0}
    assert WEIGHTS["grid"].options == {"points": 21}
    assert set(WEIGHTS["potara"].options) >= {"damping", "space", "per"}


def test_variants_are_in_the_table_under_their_names():
    assert MERGES["ties"].variants == (
        Variant("ties", "core"),
        Variant("ties (knots)", "knots"),
    )


# --- Building for a task -------------------------------------------------------------


def test_a_weight_takes_the_options_that_it_has():
    estimator = build("grid", points=2, damping=merging.relative(0.1))
    assert float(estimator.measure(CLIENT).weight) in (0, 1)


def test_a_task_of_several_labels_or_without_logits_leaves_out_what_needs_them():
    left_out = lambda **task: [n for n, e in WEIGHTS.items() if not e.suits(**task)]
    assert left_out(logits=True, one_label=True) == []
    assert left_out(logits=True, one_label=False) == ["gauss_newton"]
    without = ["gauss_newton", "mix", "tempered_bayes"]
    assert left_out(logits=False, one_label=True) == without


def test_what_a_task_does_not_give_is_named():
    with pytest.raises(ValueError, match="'gauss_newton' needs the task's logits"):
        WEIGHTS["gauss_newton"].build(loss=loss)


def test_a_task_with_only_a_loss_gives_potara_its_likelihood():
    likelihood = merging.empirical_of_loss(loss)
    estimator = WEIGHTS["potara"].build(likelihood=likelihood)
    assert 0 < float(jax.jit(estimator.measure)(CLIENT).weight) < 1


# --- A user's entries ----------------------------------------------------------------


def largest():
    pick = lambda values, weights, place: jnp.where(
        jnp.abs(values[0]) >= jnp.abs(values[1]), *values
    )
    return Merge("largest", pick, ("core",))


def register_largest(name="largest", **changed):
    given = {"spaces": ["core"], "summary": "the largest", "reference": "-"} | changed
    return registry.merge(name, **given)(largest)


def third(loss):
    return Estimator("third", lambda client: Measured(jnp.float32(1 / 3)))


def register_third(name="third", **changed):
    given = {
        "needs": "loss",
        "samples": "train",
        "passes": lambda work: 1.0,
        "summary": "a third",
        "reference": "-",
    }
    return registry.weight(name, **given | changed)(third)


def test_a_users_merge_and_weight_appear(blank):
    assert register_largest(variants=[("largest (knots)", "knots")]) is largest
    assert register_third() is third
    entry = registry.merges()["largest"]
    assert entry.variants == (("largest", "core"), ("largest (knots)", "knots"))
    out = merging.merge((FEDERATED, FEDERATED), method=entry.make())
    assert out["one"]["a"].shape[-1] == 4
    estimator = registry.weights()["third"].build(loss=loss)
    assert float(estimator.measure(CLIENT).weight) == pytest.approx(1 / 3)
    assert set(registry.merges()) == {*MERGES, "largest"}
    assert set(registry.weights()) == {*WEIGHTS, "third"}


@pytest.mark.parametrize(
    "register",
    [
        lambda: register_largest("ties"),
        lambda: register_largest("ties (knots)"),
        lambda: register_largest(variants=[("slerp", "core")]),
    ],
)
def test_a_merges_name_is_not_taken_twice(register, blank):
    with pytest.raises(ValueError, match=r"the merge '(ties|slerp).* is already"):
        register()
    assert registry.merges() == MERGES


def test_a_weights_name_is_not_taken_twice(blank):
    with pytest.raises(ValueError, match=r"weight 'soup' is already regis.*\.soup: c"):
        register_third("soup")
    assert registry.weights() == WEIGHTS


@pytest.mark.parametrize("name", ["local", "uniform", "potara core", "base"])
def test_rows_that_every_table_has_are_not_taken(name, blank):
    for register in (register_largest, register_third):
        with pytest.raises(ValueError, match=f"cannot be called '{name}', which is an"):
            register(name)
    with pytest.raises(ValueError, match="cannot be called 'federated'"):
        register_largest(variants=[("federated", "core")])
    assert (registry.merges(), registry.weights()) == (MERGES, WEIGHTS)


@pytest.mark.parametrize("on", ["train", "heldout"])
def test_every_other_row_is_reserved(on):
    experiment = digits.EXPERIMENT.set({"merging.curvature_on": on})
    variants = {v.name for entry in MERGES.values() for v in entry.variants}
    merged = {m.name for m in methods.all_methods(experiment)} - variants - set(WEIGHTS)
    assert merged | {"base", "federated", "local", rows.TUNED} <= registry.RESERVED


def test_the_same_function_may_register_again(blank):
    register_largest()
    register_largest(summary="as of now")
    assert registry.merges()["largest"].summary == "as of now"


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (lambda: register_largest(spaces=["dense"]), "space of 'largest' is 'dense'"),
        (lambda: register_largest(spaces=[]), "'largest' must name the spaces"),
        (lambda: register_largest(needs="data"), "needs of 'largest' is 'data'"),
        (lambda: register_third(needs="apply"), "needs of 'third' is 'apply'.*logits"),
        (lambda: register_third(samples="test"), "samples of 'third' is 'test'"),
        (lambda: register_third(space="dense"), "space of 'third' is 'dense'"),
        (lambda: register_third(labels="two"), "labels of 'third' is 'two'"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(register, message, blank):
    with pytest.raises(ValueError, match=message):
        register()
    assert (registry.merges(), registry.weights()) == (MERGES, WEIGHTS)


def test_every_space_merges_linearly():
    assert set(MERGES["linear"].spaces) == set(SPACES)


# --- Importing -----------------------------------------------------------------------


def test_merging_imports_nothing_that_a_merge_does_not_need():
    script = """
        import sys
        import potara_jax.merging
        unwanted = {"tensorflow_datasets", "matplotlib", "tokenizers", "orbax", "tyro"}
        unwanted |= {"sklearn", "PIL", "jinja2", "huggingface_hub", "scipy.stats"}
        print(sorted(unwanted & set(sys.modules)))
        ours = [name for name in sys.modules if name.startswith("potara_jax.")]
        print(*sorted({name.split(".")[1] for name in ours}))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    unwanted, packages = out.splitlines()
    assert unwanted == "[]"
    lower = {"adapters", "clients", "data", "keys", "memory", "versions"}
    assert set(packages.split()) <= lower | {"merging"}
