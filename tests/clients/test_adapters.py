import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from potara_jax.adapters import lora
from potara_jax.clients import adapters as many
from potara_jax.clients.adapters import train_adapters
from potara_jax.clients.axis import Layout
from potara_jax.clients.model_task import classification, objective
from potara_jax.clients.training import Train
from potara_jax.data.federation import Batch, pack
from tests.helpers import assert_close, normal

KEY = jax.random.key(7)
STEPS, BATCH, INPUTS, HIDDEN, CLASSES = 25, 3, 6, 10, 4
ONE_BY_ONE = Layout(1)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = nn.tanh(nn.Dense(HIDDEN, name="up")(x))
        return nn.Dense(CLASSES, name="down")(hidden)


class Lora(NamedTuple):
    rank: int = 2
    alpha: float = 4.0
    targets: tuple[str, ...] = ("up",)
    whole: tuple[str, ...] = ("down",)


MODEL = Mlp()
TASK = classification(MODEL)
BASE = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, INPUTS)))["params"]


@functools.cache
def examples(counts=(9, 4, 1, 6, 12)):
    rng = np.random.default_rng(0)
    return [
        (normal(rng, (count, INPUTS)), rng.integers(0, CLASSES, count))
        for count in counts
    ]


def train(data=None, *, layout=ONE_BY_ONE, key=KEY, task=TASK, **options):
    options = {"steps": STEPS, "batch_size": BATCH, "progress": False} | options
    data = examples() if data is None else data
    options = {"lora": Lora()} | options
    return train_adapters(task, BASE, data, key=key, layout=layout, **options)


def of_client(stacked, client):
    return jax.tree.map(lambda x: x[client], stacked)


def test_each_adapter_is_what_training_it_alone_gives():
    trained, losses = train()
    init_key, batch_key = jax.random.split(KEY)
    sites = TASK.sites(Batch(jnp.zeros((1, INPUTS)), None), Lora().targets)
    start = lora.init(init_key, sites, rank=2) | lora.trained_modules(BASE, ["down"])
    fit = Train(optax.adamw(5e-3, weight_decay=1e-4), steps=STEPS, batch_size=BATCH)
    alone = jax.jit(functools.partial(fit, TASK.at(2.0).objective(BASE)))
    for client, (inputs, labels) in enumerate(examples()):
        mine = of_client(pack([np.arange(len(labels))]), 0)
        key, pool = jax.random.fold_in(batch_key, client), Batch(inputs, labels)
        adapter, loss = alone(start, jax.tree.map(jnp.asarray, pool), mine, key)
        assert_close(of_client(trained, client), adapter)
        np.testing.assert_allclose(losses[client], loss, rtol=1e-5)


def test_shapes_and_that_losses_fall():
    trained, losses = train(steps=60, learning_rate=0.02)
    assert trained["up"]["a"].shape == (5, INPUTS, 2)
    assert trained["up"]["b"].shape == (5, 2, HIDDEN)
    assert trained["down"]["kernel"].shape == (5, HIDDEN, CLASSES)
    assert losses.shape == (5, 60)
    assert losses.dtype == np.float32
    assert np.isfinite(losses).all()
    assert losses[:, -5:].mean() < 0.7 * losses[:, :5].mean()


def test_the_same_key_gives_the_same_bytes():
    once, again, other = train(), train(), train(key=jax.random.key(8))
    jax.tree.map(np.testing.assert_array_equal, once, again)
    assert np.any(once[1] != other[1])


def test_other_adapters_change_nothing():
    whole, fewer = train(), train(examples()[:2])
    first = jax.tree.map(lambda x: x[:2], whole)
    jax.tree.map(np.testing.assert_array_equal, fewer, first)


@pytest.mark.parametrize("chunk", [None, 2, "auto"])
def test_chunks_change_nothing(chunk):
    assert_close(train(layout=Layout(chunk)), train(), atol=1e-4)


@pytest.mark.parametrize("steps", [1, 7, 45])
def test_progress_is_reported_to_the_end_and_changes_nothing(steps):
    seen = []
    trained, losses = train(steps=steps, progress=lambda *args: seen.append(args))
    done, totals, means = zip(*seen, strict=True)
    assert set(totals) == {steps}
    assert done[-1] == steps
    assert list(done) == sorted(set(done))
    assert len(done) <= 20
    size = done[0]
    np.testing.assert_allclose(means[0], losses[:, :size].mean(), rtol=1e-5)
    silent = train(steps=steps)
    jax.tree.map(np.testing.assert_array_equal, (trained, losses), silent)


def test_a_progress_bar_prints_nothing_where_there_is_no_terminal(capfd):
    train(steps=2, progress=True)
    assert capfd.readouterr() == ("", "")


def test_a_loss_of_ones_own_trains_a_regression():
    rng = np.random.default_rng(1)
    data = [(normal(rng, (8, INPUTS)), normal(rng, (8, CLASSES))) for _ in range(3)]
    squares = lambda apply, batch: ((apply(batch.inputs) - batch.labels) ** 2).mean(-1)
    task = objective(MODEL, squares)
    _, losses = train(data, task=task, steps=80, learning_rate=0.03)
    assert losses[:, -5:].mean() < 0.5 * losses[:, :5].mean()


def test_the_bases_products_have_no_client_axis():
    """In the compiled program every product with a frozen kernel is one, unbatched."""
    clients = 5
    task, optimizer = TASK.at(2.0), optax.adamw(1e-3)
    sites = TASK.sites(Batch(jnp.zeros((1, INPUTS)), None), ("up", "down"))
    state = many._start(lora.init(KEY, sites, rank=2), optimizer, clients)
    inputs, labels = (jnp.zeros((9, INPUTS)), jnp.zeros(9, int))
    rows = pack([np.arange(9)] * clients)
    keys = jax.random.split(KEY, clients)
    advance = many._advance(task, optimizer, steps=3, batch_size=BATCH, layout=Layout())
    args = (BASE, Batch(inputs, labels)), state, rows, keys, 0, 3
    text = advance.lower(*args).as_text(dialect="hlo")
    products = [line for line in text.splitlines() if " dot(" in line]
    kernel = rf"f32\[({INPUTS},{HIDDEN}|{HIDDEN},{CLASSES}|{CLASSES},{HIDDEN})\]"
    shapes = dict(re.findall(r"(\S+) = (\S+?)[{ ]", text))
    with_base = [
        line
        for line in products
        if any(
            re.fullmatch(kernel, shapes.get(name, ""))
            for name in re.findall(r"dot\((\S+), (\S+)\)", line)[0]
        )
    ]
    assert len(with_base) >= 3  # up, down, and down's way back
    assert not any("batch_dims" in line for line in with_base)
    assert any("batch_dims" in line for line in products)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": Lora(rank=50)}, "rank 50 does not fit"),
        ({"lora": Lora(targets=("query",))}, "target 'query' matches no"),
        ({"lora": Lora(whole=("head",))}, "no module 'head'"),
        ({"steps": 0}, "steps is 0.*at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan: .* above 0"),
        ({"learning_rate": 0}, "learning_rate is 0: .* above 0"),
        ({"weight_decay": float("inf")}, "weight_decay is inf: .* finite"),
        ({"batch_size": 0}, "batch_size 0.*at least 1"),
        ({"data": []}, "no examples"),
        ({"data": [*examples(), (np.ones((3, 2)), np.ones(3, int))]}, "data set 5 has"),
        ({"data": [(x, y - 1) for x, y in examples()]}, "data set . has the label -1"),
        ({"data": [(x, y * 1.0) for x, y in examples()]}, "labels are float32"),
        ({"key": 3}, r"key is 3: it must be a key, jax.random.key\(3\)"),
    ],
)
def test_a_mistake_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        train(**options)
