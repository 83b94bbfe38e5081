"""Algorithms against plain NumPy: two clients, two steps, gradients by hand."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from potara_jax import federated
from potara_jax.clients.task import Task
from potara_jax.clients.training import Train
from potara_jax.federated.registry import algorithms
from tests.helpers_federated import (
    OUTPUTS,
    SCALE,
    assert_close,
    linear,
    problem,
    run,
    start,
)
from tests.helpers_federated import task as classify

RATE, STEPS, COUNTS = 0.1, 2, (4, 1)


def squares(base, adapter, batch):
    error = linear(base, adapter, batch.inputs) - jnp.eye(OUTPUTS)[batch.labels]
    return 0.5 * (error**2).sum(-1)


task = Task(loss=squares, logits=classify.logits, judge=classify.judge)
train = Train(optax.sgd(RATE), steps=STEPS, batch_size=4)
several_rounds = pytest.mark.parametrize("number", [1, 2, 3])


def make(name, **how):
    return algorithms()[name].make(task, train, **how)


class Client:
    """A client's examples in float64, and what its loss says of two factors."""

    def __init__(self, given, place):
        index, count = (np.asarray(part)[place] for part in given.examples[:2])
        inputs, labels = map(np.asarray, given.shared.pool[:2])
        self.x = inputs[index[:count]].astype(np.float64)
        self.target = np.eye(OUTPUTS)[labels[index[:count]]]
        self.w = np.asarray(given.shared.base["w"], np.float64)
        self.share = count / sum(COUNTS)

    def gradients(self, a, b):
        error = self.x @ self.w + SCALE * self.x @ a @ b - self.target
        scaled = SCALE * error / len(self.x)
        return self.x.T @ scaled @ b.T, (self.x @ a).T @ scaled

    def descend(self, a, b, *, extra=lambda a, b: (0, 0), of="ab", rate=RATE):
        for _ in range(STEPS):
            own, more = self.gradients(a, b), extra(a, b)
            a = a - rate * (own[0] + more[0]) * ("a" in of)
            b = b - rate * (own[1] + more[1]) * ("b" in of)
        return a, b


def setting(number):
    given = problem(COUNTS)
    a, b = (np.asarray(given.adapter["dense"][name], np.float64) for name in "ab")
    return given, [Client(given, place) for place in range(2)], a, b, range(number)


def mean(clients, values):
    return sum(c.share * value for c, value in zip(clients, values, strict=True))


def assert_models(algorithm, given, number, expected):
    progress, _ = run(algorithm, given, number=number)
    found = federated.personalised(
        algorithm, given.shared, progress, given.examples, number=number
    )
    for place, (a, b) in enumerate(expected):
        assert_close(found["dense"]["a"][place], a)
        assert_close(found["dense"]["b"][place], b)


@several_rounds
def test_ffa_trains_b_alone(number):
    given, clients, a, b, times = setting(number)
    for _ in times:
        b = mean(clients, [c.descend(a, b, of="b")[1] for c in clients])
    assert_models(make("ffa"), given, number, [(a, b)] * 2)


@several_rounds
def test_fedsa_keeps_every_b(number):
    given, clients, a, b, times = setting(number)
    own = [b, b]
    for _ in times:
        done = [c.descend(a, mine) for c, mine in zip(clients, own, strict=True)]
        a, own = mean(clients, [d[0] for d in done]), [d[1] for d in done]
    assert_models(make("fedsa"), given, number, [(a, mine) for mine in own])


@several_rounds
def test_ditto_pulls_to_what_was_received(number):
    given, clients, a, b, times = setting(number)
    own, strength = [(a, b), (a, b)], 0.7
    for _ in times:
        pull = lambda x, y, a=a, b=b: (strength * (x - a), strength * (y - b))
        own = [
            c.descend(*mine, extra=pull) for c, mine in zip(clients, own, strict=True)
        ]
        done = [c.descend(a, b) for c in clients]
        a, b = (mean(clients, [d[i] for d in done]) for i in (0, 1))
    assert_models(make("ditto", strength=strength), given, number, own)


@several_rounds
def test_scaffold_corrects_by_control_variates(number):
    given, clients, a, b, times = setting(number)
    rate, x = 0.2, [a, b]
    common, own = [0 * a, 0 * b], [[0 * a, 0 * b] for _ in clients]
    for _ in times:
        results, changes = [], []
        for place, client in enumerate(clients):
            push = [c - k for c, k in zip(common, own[place], strict=True)]
            y = client.descend(*x, extra=lambda a, b, p=push: p, rate=rate)
            drift = [(i - j) / (STEPS * rate) for i, j in zip(x, y, strict=True)]
            change = [d - c for d, c in zip(drift, common, strict=True)]
            own[place] = [k + d for k, d in zip(own[place], change, strict=True)]
            results.append(y)
            changes.append(change)
        x = [mean(clients, [r[i] for r in results]) for i in (0, 1)]
        common = [c + (changes[0][i] + changes[1][i]) / 2 for i, c in enumerate(common)]
    assert_models(make("scaffold", learning_rate=rate), given, number, [tuple(x)] * 2)


def fedalt_step(client, a, b, gate, rest):
    """One step of own factors and gates beside the rest of the world's factors."""
    n, x = len(client.x), client.x
    raw = np.exp(x @ gate)
    first, second = (raw / raw.sum(1, keepdims=True)).T[..., None]
    outs = x @ a @ b, x @ rest[0] @ rest[1]
    y = x @ client.w + SCALE * (first * outs[0] + second * outs[1])
    error = SCALE * (y - client.target) / n
    by_chance = [(error * out).sum(1, keepdims=True) for out in outs]
    centre = first * by_chance[0] + second * by_chance[1]
    by_score = [
        p * (d - centre) for p, d in zip((first, second), by_chance, strict=True)
    ]
    grads = (
        x.T @ (first * (error @ b.T)),
        (first * (x @ a)).T @ error,
        x.T @ np.hstack(by_score),
    )
    return tuple(v - RATE * g for v, g in zip((a, b, gate), grads, strict=True))


@several_rounds
def test_fedalt_learns_beside_the_other_client(number):
    given, clients, a, b, times = setting(number)
    algorithm = make("fedalt")
    gates = start(algorithm, given).states["model"]["gates"]["dense"]
    own = [(a, b, np.asarray(gate, np.float64)) for gate in gates]
    for _ in times:
        rest = [own[1][:2], own[0][:2]]
        for _ in range(STEPS):
            own = [
                fedalt_step(c, *mine, others)
                for c, mine, others in zip(clients, own, rest, strict=True)
            ]
    progress, _ = run(algorithm, given, number=number)
    model = progress.states["model"]
    for place, (a, b, gate) in enumerate(own):
        assert_close(model["personal"]["dense"]["a"][place], a)
        assert_close(model["personal"]["dense"]["b"][place], b)
        assert_close(model["gates"]["dense"][place], gate)
