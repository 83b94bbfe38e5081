import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from potara_jax.adapters import lora
from potara_jax.clients.model_task import check_task, classification, objective
from potara_jax.data.federation import Batch
from tests.helpers import assert_close, normal

SCALE, CLASSES = 0.7, 3
RNG = np.random.default_rng(0)
X, CONTEXT = normal(RNG, (8, 5)), normal(RNG, (8, 4))
LABELS = jnp.arange(8) % CLASSES


class Flagged(nn.Module):
    """A classifier with running statistics, which takes a flag."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6, name="body")(x))
        return nn.Dense(CLASSES, name="head")(nn.tanh(x))


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, x, context):
        return nn.Dense(CLASSES, name="x")(x) + nn.Dense(CLASSES, name="c")(context)


def setup(task, batch, targets, *arguments):
    """All variables, sites and an adapter whose delta is not zero."""
    sites = task.sites(batch, targets)
    base = task.model.init(jax.random.key(0), *arguments)
    adapter = lora.init(jax.random.key(1), sites, rank=2)
    return base, sites, jax.tree.map(lambda x: x + 0.3, adapter)


def cross_entropy(logits):
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(8), np.asarray(LABELS)]


def test_a_tuple_of_inputs_is_spread_over_the_arguments():
    task, batch = classification(TwoInputs()), Batch((X, CONTEXT), LABELS)
    base, sites, adapter = setup(task, batch, ("x", "c"), X, CONTEXT)
    assert set(sites) == {"x", "c"}
    folded = lora.fold(base, adapter, sites, scale=SCALE)
    expected = cross_entropy(task.model.apply(folded, X, CONTEXT))
    np.testing.assert_allclose(
        task.at(SCALE).loss(base, adapter, batch), expected, rtol=1e-4
    )


def test_inputs_say_what_the_model_is_called_with():
    task = classification(Flagged(), inputs=lambda x: (x, False), head="head")
    batch = Batch(X, LABELS)
    base, sites, adapter = setup(task, batch, "body", X, False)
    at = task.at(SCALE, sites)
    folded = lora.fold(base, adapter, sites, scale=SCALE)
    logits = task.model.apply(folded, X, False)
    assert_close(jax.jit(at.logits)(base, adapter, batch), logits)
    loss, score = at.measure(base, adapter, batch)
    np.testing.assert_allclose(loss, cross_entropy(logits), rtol=1e-4)
    np.testing.assert_array_equal(score, logits.argmax(1) == LABELS)
    head = base["params"]["head"]
    features = at.features(base, adapter, batch)
    assert_close(features @ head["kernel"] + head["bias"], logits)
    assert_close(at.inputs(base, adapter, batch)["body"], X)


def test_without_sites_nothing_is_added_and_no_inputs_are_read():
    task = classification(TwoInputs()).at(SCALE)
    assert task.add is task.inputs is None


def test_deltas_are_added_to_the_base():
    task, batch = classification(TwoInputs()), Batch((X, CONTEXT), LABELS)
    base, sites, adapter = setup(task, batch, "x", X, CONTEXT)
    at = task.at(SCALE, sites)
    delta = {"x": adapter["x"]["a"] @ adapter["x"]["b"]}
    added = at.loss(at.add(base, delta), {}, batch)
    np.testing.assert_allclose(added, at.loss(base, adapter, batch), rtol=1e-4)


def test_an_objective_trains_on_a_loss_of_two_passes():
    def ranking(apply, batch):
        better, worse = (apply(batch.inputs[name], CONTEXT) for name in ("up", "down"))
        return jax.nn.softplus((worse - better).mean(-1))

    task = objective(TwoInputs(), ranking, inputs=lambda x: (x["up"], CONTEXT))
    batch = Batch({"up": X, "down": -X}, None)
    base, sites, adapter = setup(task, batch, "x", X, CONTEXT)
    at = task.at(SCALE, sites)
    folded = lora.fold(base, adapter, sites, scale=SCALE)
    up, down = (task.model.apply(folded, x, CONTEXT) for x in (X, -X))
    expected = np.log1p(np.exp((down - up).mean(-1)))
    np.testing.assert_allclose(at.loss(base, adapter, batch), expected, rtol=1e-4)
    slope = jax.grad(at.objective(base))(adapter, batch)
    assert float(jnp.abs(slope["x"]["b"]).max()) > 1e-3
    assert at.add is not None


def test_targets_without_a_match_are_refused():
    with pytest.raises(ValueError, match="target 'query' matches no module"):
        classification(TwoInputs()).sites(Batch((X, CONTEXT), LABELS), "query")


# --- Labels --------------------------------------------------------------------------

GROUPS = [np.arange(5), np.arange(5, 8)]


def check_labels(labels, model=None):
    task, batch = classification(model or TwoInputs()), Batch((X, CONTEXT), labels)
    base = task.model.init(jax.random.key(0), X, CONTEXT)
    task.check(base, batch, GROUPS, ["client 0", "client 1"])


def test_labels_below_the_number_of_outputs_are_classes():
    check_labels(LABELS)
    check_labels(LABELS.astype(jnp.uint8))


@pytest.mark.parametrize("value", [-1, CLASSES, 2**31 - 1])
def test_a_label_that_is_no_class_is_refused_with_its_client(value):
    reason = f"client 1 has the label {value}: the model has 3 outputs, .* from 0 to 2"
    with pytest.raises(ValueError, match=reason):
        check_labels(LABELS.at[6].set(value))


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (LABELS * 1.0, r"are float32: .* labels\.astype\(int\)"),
        (LABELS > 0, r"are bool: .* labels\.astype\(int\)"),
        (LABELS[:, None], r"are a column, \[N, 1\]: .* labels\[:, 0\]"),
        (jax.nn.one_hot(LABELS, 3), r"are arrays of \[3\]: .* labels\.argmax\(-1\)"),
        ({"class": LABELS}, r"are a dict: .* one array of integers"),
        (None, r"are a NoneType: .* one array of integers"),
    ],
)
def test_labels_that_are_not_integers_are_refused_with_the_change(labels, reason):
    with pytest.raises(ValueError, match=reason):
        check_labels(labels)


def test_a_loss_of_ones_own_takes_labels_of_any_kind():
    loss = lambda apply, batch: apply(*batch.inputs).sum(1)
    task, batch = objective(TwoInputs(), loss), Batch((X, CONTEXT), LABELS - 7.5)
    base = task.model.init(jax.random.key(0), X, CONTEXT)
    task.check(base, batch, GROUPS, ["client 0", "client 1"])


def test_a_base_that_does_not_fit_or_is_not_finite_is_refused():
    task, batch = classification(TwoInputs()), Batch((X, CONTEXT), LABELS)
    base = task.model.init(jax.random.key(0), X, CONTEXT)["params"]
    loss = lambda apply, batch: apply(*batch.inputs).sum(1)
    for each in (task, objective(TwoInputs(), loss)):
        check = lambda base, each=each: each.check(base, batch, GROUPS, ["0", "1"])
        check(base)
        for wrong in ({"x": base["x"]}, jax.tree.map(lambda x: x[:2], base)):
            with pytest.raises(ValueError, match="do not fit together: "):
                check(wrong)
        with pytest.raises(ValueError, match="the base is a NoneType"):
            check(None)
        broken = base | {"c": jax.tree.map(lambda x: x * jnp.nan, base["c"])}
        with pytest.raises(ValueError, match="not finite, in 'c/bias'"):
            check(broken)


def test_a_task_is_of_a_model_and_a_loss():
    with pytest.raises(ValueError, match="model is a function: it must be a Flax"):
        classification(lambda x: x)
    with pytest.raises(ValueError, match="loss is None: it must be a function"):
        objective(TwoInputs(), None)
    with pytest.raises(ValueError, match="task is a TwoInputs: make one"):
        check_task(TwoInputs())


def test_a_classification_has_one_row_of_logits_for_an_example():
    class Sequence(nn.Module):
        @nn.compact
        def __call__(self, x, context):
            return nn.Dense(CLASSES)(x)[:, None]

    with pytest.raises(ValueError, match=r"gives \[1, 1, 3\] for one example"):
        check_labels(LABELS, Sequence())
