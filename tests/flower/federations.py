"""Small federations, deployed: the same linear model as in the simulator's tests."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from potara_jax import federated
from potara_jax.clients.training import Train
from potara_jax.data.federation import Federation, Ragged, evenly_weighted, take
from potara_jax.federated.algorithms.local import local_only
from potara_jax.federated.conditions import EVERYBODY
from potara_jax.federated.registry import algorithms
from potara_jax.federated.wire import AS_IT_IS
from potara_jax.flower import Deployment, Node, Personal
from potara_jax.merging import Samples, auto
from potara_jax.merging import personalise as merging
from tests.helpers_federated import problem, run, start, task

COUNTS = (4, 2, 1, 4)
train = Train(optax.sgd(0.1), steps=3, batch_size=2)
GIVEN = problem(COUNTS)


@functools.cache
def algorithm(name, **hyperparameters):
    return algorithms()[name].make(task, train, **hyperparameters)


@functools.cache
def deployed(name, *, conditions=EVERYBODY, wire=AS_IT_IS, personal=None, **more):
    """A federation of four clients."""
    base, pool = GIVEN.shared.base, GIVEN.shared.pool
    return Deployment(
        task,
        algorithm(name, **more),
        base,
        GIVEN.adapter,
        take(pool, jnp.zeros(1, jnp.int32)),
        len(COUNTS),
        jax.random.key(0),
        conditions,
        wire,
        personal,
    )


def node(*clients):
    """A node that has some of the clients, and a pool of their examples alone."""
    groups = zip(*map(np.asarray, GIVEN.examples[:2]), strict=True)
    chosen = [index[:count] for index, count in groups]
    every = np.concatenate([chosen[client] for client in clients])
    pool = take(GIVEN.shared.pool, jnp.asarray(every))
    counts = np.array([COUNTS[client] for client in clients], np.int32)
    ends = np.cumsum(counts)
    index = np.zeros((len(clients), counts.max()), np.int32)
    for row, end, count in zip(index, ends, counts, strict=True):
        row[:count] = np.arange(end - count, end)
    mine = Ragged(jnp.asarray(index), jnp.asarray(counts))
    nothing = jnp.zeros(len(clients))
    test = evenly_weighted(mine)
    return Node(clients, Federation(pool, mine, mine, test, nothing, nothing))


def simulated(deployment, *, rounds):
    """Progress and the last report of the same rounds by `make_round`."""
    options = {"conditions": deployment.conditions, "wire": deployment.wire}
    return run(deployment.algorithm, GIVEN, number=rounds, **options)


def models(deployment, progress, *, rounds):
    """All clients' models after the simulated rounds."""
    args = deployment.algorithm, GIVEN.shared, progress, GIVEN.examples
    return federated.personalised(*args, number=rounds)


def personalised(deployment, progress, *, rounds):
    """All clients' merged models, of simulated rounds."""
    local, key = local_only(task, deployment.personal.train), deployment.local_key
    begin, step = start(local, GIVEN), federated.make_round(local)
    for number in range(deployment.personal.rounds):
        begin, _ = step(GIVEN.shared, begin, GIVEN.examples, key, number)
    samples = Samples(take(GIVEN.shared.pool, GIVEN.examples.index), np.array(COUNTS))
    both = models(deployment, progress, rounds=rounds), begin.states
    program = merging(auto(task.loss, task.logits))
    key = deployment.merging_key
    base = GIVEN.shared.base
    return program(base, *both, samples, jnp.array(COUNTS), key).adapter


PERSONAL = Personal(train, rounds=2)
