import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.clients.task import classification
from tests.helpers_federated import SCALE, problem, task


def test_classification_equals_numpy():
    shared, _, adapter = problem((8,))
    base, (inputs, labels) = shared[:2]
    w, a, b = (
        np.asarray(x, np.float64) for x in (base["w"], *adapter["dense"].values())
    )
    logits = np.asarray(inputs) @ (w + SCALE * a @ b)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(8), labels]
    correct = logits.argmax(1) == np.asarray(labels)
    args = base, adapter, shared.pool
    np.testing.assert_allclose(task.logits(*args), logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(task.loss(*args), losses, rtol=1e-5, atol=1e-6)
    judged = task.judge(*args)
    np.testing.assert_allclose(judged[0], losses, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(judged[1], correct)
    assert 0 < correct.sum() < 8


def test_losses_are_float32_whatever_the_model_computes_in():
    shared, _, adapter = problem((8,))
    half = lambda base, adapter, inputs: inputs.astype(jnp.bfloat16)
    for fn in classification(half)[:3]:
        found = jax.tree.leaves(fn(shared.base, adapter, shared.pool))
        assert {x.dtype for x in found} == {jnp.dtype("float32")}
