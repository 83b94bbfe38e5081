import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potara_jax.clients.training import Train, batch_index, client_key
from potara_jax.data.federation import Batch, Ragged, take
from potara_jax.keys import subkey
from tests.helpers_federated import assert_close, assert_equal, differs, few_examples

KEY = jax.random.key(3)
BATCHES = subkey(KEY, "batches")  # of a training with that key
COUNT, STEPS, BATCH = 11, 6, 4
SGD, ADAMW = optax.sgd(0.2), optax.adamw(0.1, weight_decay=0.1)
draw = jax.jit(batch_index, static_argnames=("steps", "batch_size"))


def examples(count=COUNT, *, padding=0, pad=-1):
    index = jnp.concatenate([100 + jnp.arange(count), jnp.full(padding, pad)])
    return Ragged(index, jnp.int32(count))


@functools.cache
def linear_problem(kind):
    """Parameters, a pool whose first 100 examples are NaN, and an objective."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(100 + COUNT, 4)).astype(np.float32)
    inputs[:100] = np.nan
    if kind == "softmax":
        labels = rng.integers(0, 3, 100 + COUNT)
        losses = optax.softmax_cross_entropy_with_integer_labels
    else:
        labels = rng.normal(size=(100 + COUNT, 3)).astype(np.float32)
        losses = lambda y, t: 0.5 * ((y - t) ** 2).sum(-1)

    def objective(params, batch):
        return losses(batch.inputs @ params["w"] + params["c"], batch.labels).mean()

    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
    pool = Batch(jnp.asarray(inputs), jnp.asarray(labels))
    return params | {"c": jnp.zeros(3)}, pool, objective


@functools.cache
def jitted(optimizer):
    fit = Train(optimizer, steps=STEPS, batch_size=BATCH)
    return jax.jit(fit, static_argnums=0)


def train(optimizer, kind="softmax", *, padding=0, params=None):
    start, pool, objective = linear_problem(kind)
    own = examples(padding=padding, pad=0)
    start = start if params is None else params
    return jitted(optimizer)(objective, start, pool, own, KEY)


@jax.jit
def adamw_step(params, state, row):
    _, pool, objective = linear_problem("softmax")
    loss, grads = jax.value_and_grad(objective)(params, take(pool, row))
    updates, state = ADAMW.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss


def loop(params, state):
    """Step by step what training does, from any state of the optimizer."""
    losses = []
    for row in np.asarray(draw(BATCHES, examples(), steps=STEPS, batch_size=BATCH)):
        params, state, loss = adamw_step(params, state, row)
        losses.append(loss)
    return (params, np.array(losses)), state


@few_examples
@given(st.integers(1, 12), st.sampled_from([(5, 3), (4, 7)]), st.integers(0, 9))
def test_every_example_is_used_equally_often_and_padding_never(count, shape, seed):
    steps, batch_size = shape
    own = examples(count, padding=12 - count)
    index = draw(jax.random.key(seed), own, steps=steps, batch_size=batch_size)
    assert index.shape == shape
    assert np.all(np.asarray(index) >= 100)
    uses = np.bincount(np.ravel(index) - 100, minlength=count)
    assert len(uses) == count
    assert uses.max() - uses.min() <= 1


def test_batches_are_one_shuffle_in_a_cycle():
    index = np.ravel(draw(KEY, examples(), steps=COUNT, batch_size=3))
    first, second, third = np.split(index, 3)
    assert sorted(first) == list(range(100, 100 + COUNT))
    assert list(first) != sorted(first)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)


def test_later_batches_go_on_where_earlier_ones_ended():
    whole = draw(KEY, examples(), steps=8, batch_size=3)
    parts = [
        draw(KEY, examples(), steps=2, batch_size=3, first=first)
        for first in (0, 2, 4, 6)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_batches_depend_on_the_key():
    once = draw(KEY, examples(), steps=2, batch_size=COUNT)
    other = draw(jax.random.key(4), examples(), steps=2, batch_size=COUNT)
    assert differs(once, other)


@few_examples
@given(st.integers(0, 2**31 - 1))
def test_padding_changes_no_batch(seed):
    key = jax.random.key(seed)
    once = draw(key, examples(), steps=STEPS, batch_size=BATCH)
    padded = draw(key, examples(padding=17), steps=STEPS, batch_size=BATCH)
    np.testing.assert_array_equal(once, padded)


def test_padding_changes_nothing_in_training_to_the_bit():
    once, padded = (train(ADAMW, padding=padding) for padding in (0, 17))
    assert_equal(padded, once)
    assert np.all(np.isfinite(once[1]))


@pytest.mark.parametrize("kind", ["softmax", "squares"])
def test_training_with_sgd_equals_numpy(kind):
    params, pool, _ = linear_problem(kind)
    w, c = (np.asarray(params[name], np.float64) for name in ("w", "c"))
    losses = []
    for row in np.asarray(draw(BATCHES, examples(), steps=STEPS, batch_size=BATCH)):
        x = np.asarray(pool.inputs, np.float64)[row]
        y, target = x @ w + c, np.asarray(pool.labels)[row]
        if kind == "softmax":
            chance = np.exp(y) / np.exp(y).sum(1, keepdims=True)
            losses.append(-np.log(chance[np.arange(BATCH), target]).mean())
            error = chance - np.eye(3)[target]
        else:
            error = y - target
            losses.append(0.5 * (error**2).sum(1).mean())
        w, c = w - 0.2 * x.T @ error / BATCH, c - 0.2 * error.mean(0)
    result = train(SGD, kind)
    assert_close(result, ({"w": w, "c": c}, np.array(losses)))


def test_training_with_adamw_equals_a_loop():
    params, _, _ = linear_problem("softmax")
    wanted, _ = loop(params, ADAMW.init(params))
    assert_close(train(ADAMW), wanted)


def test_optimizer_state_is_fresh_each_call():
    params, _, _ = linear_problem("softmax")
    (middle, _), state = loop(params, ADAMW.init(params))
    fresh, _ = loop(middle, ADAMW.init(middle))
    continued, _ = loop(middle, state)
    result = train(ADAMW, params=train(ADAMW)[0])
    assert_close(result, fresh)
    assert np.abs(result[0]["w"] - continued[0]["w"]).max() > 0.01


def test_losses_are_those_of_each_steps_batch():
    _, losses = train(SGD)
    params, pool, objective = linear_problem("softmax")
    row = draw(BATCHES, examples(), steps=STEPS, batch_size=BATCH)[0]
    assert losses.shape == (STEPS,)
    assert losses.dtype == jnp.float32
    assert_close(losses[0], objective(params, take(pool, row)))


def test_client_keys_differ_between_clients_and_rounds():
    keys = [client_key(KEY, c, n) for c in range(4) for n in range(4)]
    data = {tuple(jax.random.key_data(key).tolist()) for key in keys}
    assert len(data) == 16
