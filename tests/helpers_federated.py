"""A linear model with factors, and small federations of it.

Dimension letters: `B` batch, `D` inputs, `R` rank, `K` outputs.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import settings

from potara_jax import federated
from potara_jax.adapters.lora import Adapter
from potara_jax.clients.task import of_classes
from potara_jax.clients.training import Train
from potara_jax.data.federation import Batch, Ragged, pack
from potara_jax.federated import rounds
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.algorithms.local import local_only
from potara_jax.federated.conditions import EVERYBODY
from potara_jax.federated.interface import Shared
from potara_jax.federated.progress import Progress, with_feedback

INPUTS, RANK, OUTPUTS, SCALE = 5, 2, 3, 0.5

few_examples = settings(deadline=None, max_examples=25)


def fold(base, deltas):
    """The base with dense deltas in it."""
    return base | {"w": base["w"] + SCALE * deltas["dense"]}


def linear(base, adapter, inputs):
    """The model `y = x W + s (x a) b`, with gates where there are."""
    entry = adapter["dense"]
    hidden = inputs @ entry["a"]
    if "g" in entry:
        gates = jax.nn.softmax(inputs @ entry["g"])
        hidden = hidden * jnp.repeat(gates, hidden.shape[-1] // gates.shape[-1], -1)
    return inputs @ base["w"] + SCALE * hidden @ entry["b"]


task = of_classes(linear, add=fold)

# Batches of four are all of a client's examples where their number divides four.
whole_batches = Train(optax.sgd(0.1), steps=3, batch_size=4)
small_batches = Train(optax.adamw(0.05), steps=3, batch_size=3)
ALGORITHMS = {
    "FedIT": fedit(task, small_batches),
    "local": local_only(task, small_batches),
    "FedIT, whole batches": fedit(task, whole_batches),
    "local, whole batches": local_only(task, whole_batches),
}
make_round = functools.cache(rounds.make_round)


class Problem(NamedTuple):
    """A federation of the linear model."""

    shared: Shared
    examples: Ragged
    adapter: Adapter


def problem(counts=(4, 2, 1, 4), *, seed=0, size=None, pool=0) -> Problem:
    """Clients with `counts` examples, and an adapter whose delta is not zero.

    pool: examples there are at least, also such as no client has.
    """
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    labels = jnp.asarray(rng.integers(0, OUTPUTS, sum(counts)), jnp.int32)
    given = Batch(normal(sum(counts), INPUTS), labels)
    more = max(0, pool - sum(counts))
    wide = lambda x: jnp.pad(x, ((0, more), *[(0, 0)] * (x.ndim - 1)))
    adapter = {"dense": {"a": normal(INPUTS, RANK), "b": normal(RANK, OUTPUTS)}}
    groups = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    shared = Shared({"w": normal(INPUTS, OUTPUTS)}, jax.tree.map(wide, given))
    return Problem(shared, pack(groups, size=size), adapter)


def poisoned(given: Problem, client: int, value: float) -> Problem:
    """The problem with one client's inputs replaced by a value."""
    index, count = (np.asarray(part)[client] for part in given.examples[:2])
    inputs = np.array(given.shared.pool.inputs)
    inputs[index[:count]] = value
    pool = given.shared.pool._replace(inputs=jnp.asarray(inputs))
    return given._replace(shared=given.shared._replace(pool=pool))


def start(algorithm, given: Problem, conditions=EVERYBODY, seed=0) -> Progress:
    """The state before the first round, every client from the problem's adapter."""
    adapters = federated.stack(given.adapter, clients=len(given.examples.count))
    return federated.start(algorithm, adapters, jax.random.key(seed), conditions)


def run(algorithm, given: Problem, *, number=1, seed=0, **options):
    """Progress and the last report after a number of rounds."""
    conditions = options.get("conditions", EVERYBODY)
    progress = start(algorithm, given, conditions, seed)
    if "wire" in options:
        args = options["wire"], given.shared, progress, given.examples
        progress = with_feedback(algorithm, *args)
    step, key = make_round(algorithm, **options), jax.random.key(seed)
    for index in range(number):
        progress, report = step(given.shared, progress, given.examples, key, index)
    return progress, report


def assert_equal(left, right):
    """Two pytrees are the same to the bit."""
    jax.tree.map(np.testing.assert_array_equal, left, right)


def assert_close(left, right, *, rtol=1e-5, atol=1e-6):
    """Two pytrees are the same but for rounding."""
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)
    jax.tree.map(close, left, right)


def differs(left, right) -> bool:
    """Whether any number of two pytrees is not the same."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return any(np.any(np.asarray(x) != np.asarray(y)) for x, y in pairs)
