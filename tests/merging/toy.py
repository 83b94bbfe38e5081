"""A client with two small models and some samples, two of them padded."""

import jax
import jax.numpy as jnp
import numpy as np

from potara_jax.adapters import algebra
from potara_jax.merging import Client
from tests.helpers import factors, normal

INPUTS, CLASSES, SAMPLES = 5, 3, 12
KEY = jax.random.key(2)
RNG = np.random.default_rng(3)
EXAMPLES = (
    normal(RNG, (SAMPLES, INPUTS)),
    jnp.asarray(RNG.integers(CLASSES, size=SAMPLES), jnp.int32),
)
FEDERATED, LOCAL = (
    {"one": factors(s, INPUTS, INPUTS), "two": factors(s + 1, INPUTS, CLASSES)}
    for s in (0, 10)
)
CLIENT = Client(
    jnp.float32(0.7),
    FEDERATED,
    LOCAL,
    EXAMPLES,
    jnp.ones(SAMPLES).at[-2:].set(0),
    jnp.float32(40),
    KEY,
)


def logits(base, adapter, examples):
    delta = lambda path: algebra.delta(adapter[path])
    return base * jnp.tanh(examples[0] @ delta("one") / 3) @ delta("two")


def one_example(base, adapter, example):
    return logits(base, adapter, (example[0][None], None))[0]


def loss(base, adapter, examples):
    log_p = jax.nn.log_softmax(logits(base, adapter, examples))
    return -jnp.take_along_axis(log_p, examples[1][:, None], 1)[:, 0]
