import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.clients.task import ACCURACY, LOSS, of_classes, of_loss
from tests.helpers_federated import SCALE, linear, problem, task


@pytest.fixture(scope="module")
def case():
    """A base, an adapter and a batch of eight."""
    shared, _, adapter = problem((8,))
    return shared.base, adapter, shared.pool


def numpy_logits(base, adapter, batch):
    w, a, b = (
        np.asarray(x, np.float64) for x in (base["w"], *adapter["dense"].values())
    )
    return np.asarray(batch.inputs) @ (w + SCALE * a @ b)


def test_classes_equal_numpy(case):
    logits, labels = numpy_logits(*case), np.asarray(case[-1].labels)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(8), labels]
    correct = logits.argmax(1) == labels
    np.testing.assert_allclose(task.logits(*case), logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(task.loss(*case), losses, rtol=1e-5, atol=1e-6)
    judged = task.judge(*case)
    np.testing.assert_allclose(judged[0], losses, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(judged[1], correct)
    assert 0 < correct.sum() < 8
    assert task.metric == ACCURACY


def test_losses_are_float32_whatever_the_model_computes_in(case):
    half = lambda base, adapter, inputs: inputs.astype(jnp.bfloat16)
    classes = of_classes(half)
    squares = of_loss(half, lambda apply, batch: apply(batch.inputs).mean(-1) ** 2)
    for fn in (classes.loss, classes.logits, classes.judge, squares.loss):
        dtypes = {x.dtype for x in jax.tree.leaves(fn(*case))}
        assert dtypes == {jnp.dtype("float32")}


def squares(apply, batch):
    return ((apply(batch.inputs) - batch.labels[:, None]) ** 2).sum(-1)


def test_a_loss_is_of_the_adapted_model(case):
    expected = (numpy_logits(*case) - np.asarray(case[-1].labels)[:, None]) ** 2
    squared = of_loss(linear, squares)
    np.testing.assert_allclose(
        jax.jit(squared.loss)(*case), expected.sum(-1), rtol=1e-5
    )
    assert squared.logits is squared.judge is squared.again is None


def test_without_a_judge_the_score_is_minus_the_loss(case):
    squared = of_loss(linear, squares)
    loss, score = squared.measure(*case)
    np.testing.assert_array_equal(loss, squared.loss(*case))
    np.testing.assert_array_equal(score, -loss)
    assert squared.metric == LOSS
    jax.tree.map(np.testing.assert_array_equal, task.measure(*case), task.judge(*case))


def test_a_loss_may_call_the_model_more_than_once(case):
    def ranking(apply, batch):
        return jax.nn.softplus(
            (apply(batch.inputs[::-1]) - apply(batch.inputs)).mean(-1)
        )

    logits = numpy_logits(*case)
    expected = np.log1p(np.exp((logits[::-1] - logits).mean(-1)))
    found = of_loss(linear, ranking).loss(*case)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("reduce", [jnp.mean, lambda x: x[:, None], lambda x: x[:3]])
def test_a_loss_that_is_not_one_number_an_example_is_refused(case, reduce):
    reduced = of_loss(linear, lambda apply, batch: reduce(squares(apply, batch)))
    with pytest.raises(ValueError, match=r"not \[8\].*without a mean"):
        reduced.loss(*case)


def test_a_task_on_other_models_leaves_out_what_it_does_not_have(case):
    base, adapter, batch = case
    lifted = of_loss(linear, squares).of(lambda model: model["mine"])
    loss = lifted.loss(base, {"mine": adapter}, batch)
    np.testing.assert_array_equal(loss, of_loss(linear, squares).loss(*case))
    assert lifted.logits is lifted.judge is None
