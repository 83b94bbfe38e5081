import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.algorithms.fedit import fedit
from tests.helpers_federated import (
    OUTPUTS,
    SCALE,
    assert_close,
    linear,
    problem,
    run,
    task,
)

RATE = 0.1


def squares(base, adapter, batch):
    error = linear(base, adapter, batch.inputs) - jnp.eye(OUTPUTS)[batch.labels]
    return 0.5 * (error**2).sum(-1)


two_steps = Train(optax.sgd(RATE), steps=2, batch_size=4)
ALGORITHMS = {
    "softmax": fedit(task, two_steps),
    "squares": fedit(Task(squares, task.logits, task.judge), two_steps),
}


def numpy_errors(kind, y, target):
    """The gradient of the loss by the outputs, and the loss."""
    if kind == "squares":
        return y - target, 0.5 * ((y - target) ** 2).sum(1)
    chance = np.exp(y) / np.exp(y).sum(1, keepdims=True)
    return chance - target, -np.log((chance * target).sum(1))


def numpy_client(kind, w, a, b, x, target, *, steps):
    losses = []
    for _ in range(steps):
        error, loss = numpy_errors(kind, x @ w + SCALE * x @ a @ b, target)
        losses.append(loss.mean())
        grad_a = SCALE * x.T @ error @ b.T / len(x)
        grad_b = SCALE * (x @ a).T @ error / len(x)
        a, b = a - RATE * grad_a, b - RATE * grad_b
    return a, b, losses


def numpy_rounds(kind, given, *, steps, number):
    w = np.asarray(given.shared.base["w"], np.float64)
    a, b = (np.asarray(given.adapter["dense"][name], np.float64) for name in "ab")
    inputs, labels = map(np.asarray, given.shared.pool[:2])
    weights = np.asarray(given.examples.count) / np.sum(given.examples.count)
    for _ in range(number):
        results = []
        for row, count in zip(*map(np.asarray, given.examples[:2]), strict=True):
            own = row[:count]
            target = np.eye(OUTPUTS)[labels[own]]
            results.append(
                numpy_client(kind, w, a, b, inputs[own], target, steps=steps)
            )
        a = sum(p * result[0] for p, result in zip(weights, results, strict=True))
        b = sum(p * result[1] for p, result in zip(weights, results, strict=True))
    return {"dense": {"a": a, "b": b}}, np.array([result[2] for result in results])


def only(given, client):
    own = jax.tree.map(lambda x: x[client : client + 1], given.examples)
    return given._replace(examples=own)


@pytest.mark.parametrize("kind", ALGORITHMS)
@pytest.mark.parametrize("number", [1, 2])
def test_two_clients_and_two_steps_equal_numpy(kind, number):
    given = problem((4, 1))
    progress, report = run(ALGORITHMS[kind], given, number=number)
    server, losses = numpy_rounds(kind, given, steps=2, number=number)
    assert_close(progress.server, server)
    assert_close(report.losses, losses)


def test_the_mean_is_weighted_by_examples():
    given = problem((4, 1))
    progress, _ = run(ALGORITHMS["softmax"], given)
    alone = [
        numpy_rounds("softmax", only(given, client), steps=2, number=1)[0]
        for client in range(2)
    ]
    first, second = (factors["dense"]["b"] for factors in alone)
    assert_close(progress.server["dense"]["b"], 0.8 * first + 0.2 * second)
    assert np.abs(0.3 * (first - second)).max() > 0.01


def test_aggregate_is_the_mean_of_the_factors_and_not_of_their_products():
    rng = np.random.default_rng(0)
    factors = {"a": rng.normal(size=(2, 4, 2)), "b": rng.normal(size=(2, 2, 3))}
    weights, stacked = np.array([0.25, 0.75]), {"dense": factors}
    aggregate = ALGORITHMS["softmax"].aggregate
    mean = aggregate({}, stacked, jnp.asarray(weights))["dense"]
    products = np.einsum("c,cdr,crk->dk", weights, factors["a"], factors["b"])
    a, b = (np.einsum("c,cij->ij", weights, factors[name]) for name in "ab")
    spread = [(factors["a"] - a), (factors["b"] - b)]
    covariance = np.einsum("c,cdr,crk->dk", weights, *spread)
    assert_close(products - mean["a"] @ mean["b"], covariance)
    assert np.abs(covariance).max() > 0.1
