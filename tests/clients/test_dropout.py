"""Models with dropout, in Linen and in NNX: on in training steps alone."""

from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from potara_jax.adapters import lora, of_nnx
from potara_jax.clients.adapters import train_adapters
from potara_jax.clients.model_task import classification, objective
from potara_jax.clients.training import Train, client_key
from potara_jax.data.federation import Batch, Ragged
from potara_jax.experiment.settings import Lora
from tests.helpers import assert_close, normal

RNG = np.random.default_rng(0)
X, LABELS = normal(RNG, (12, 6)), jnp.arange(12) % 3
BATCH = Batch(X, LABELS)
KEYS = jax.random.split(jax.random.key(7), 64)


class OfLinen(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, deterministic=True):
        for name in ("first", "second"):
            x = nn.BatchNorm(use_running_average=True)(nn.Dense(6, name=name)(x))
            x = nn.Dropout(self.rate)(x, deterministic=deterministic)
        return nn.Dense(3, name="head")(x)


class OfNnx(nnx.Module):
    def __init__(self, rate=0.5, rngs=None):
        rngs = rngs or nnx.Rngs(0)
        for name in ("first", "second"):
            setattr(self, name, nnx.Linear(6, 6, rngs=rngs))
            setattr(self, f"{name}_norm", nnx.BatchNorm(6, rngs=rngs))
            setattr(self, f"{name}_drop", nnx.Dropout(rate, rngs=rngs))
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        for name in ("first", "second"):
            x = getattr(self, f"{name}_norm")(getattr(self, name)(x))
            x = getattr(self, f"{name}_drop")(x)
        return self.head(x)


def of_linen(rate=0.5):
    model = OfLinen(rate)
    training = lambda key: {"rngs": {"dropout": key}, "deterministic": False}
    return model, model.init(jax.random.key(0), X), training


def of_nnx_model(rate=0.5):
    model = OfNnx(rate)
    return model, of_nnx.variables(model), lambda key: {"rngs": {"dropout": key}}


KINDS = pytest.mark.parametrize("kind", [of_linen, of_nnx_model])


def made(kind, rate=0.5):
    """A task, its base and an adapter whose delta is not zero."""
    model, base, training = kind(rate)
    task = classification(model, training=training)
    sites = task.sites(BATCH, ("first", "second"))
    adapter = lora.init(jax.random.key(1), sites, rank=2)
    return task.at(1.0, sites), base, jax.tree.map(lambda x: x + 0.3, adapter)


@KINDS
def test_a_model_drops_in_a_step_and_nowhere_else(kind):
    task, base, adapter = made(kind)
    whole, _, _ = made(kind, rate=0.0)
    measured = task.loss(base, adapter, BATCH)
    np.testing.assert_array_equal(measured, whole.loss(base, adapter, BATCH))
    np.testing.assert_array_equal(task.judge(base, adapter, BATCH)[0], measured)
    first, again, second = (
        task.loss(base, adapter, BATCH._replace(key=KEYS[i])) for i in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 0.01 < np.abs(first - measured).max()
    stepped = whole.loss(base, adapter, BATCH._replace(key=KEYS[0]))
    np.testing.assert_array_equal(stepped, measured)


@KINDS
def test_places_drop_apart_and_at_their_rate(kind):
    """With the identity in both layers a feature survives both with chance 1/4."""
    model, base, training = kind()
    for name in ("first", "second"):
        base["params"][name] = {"kernel": jnp.eye(6), "bias": jnp.zeros(6)}
    base["params"]["head"] = {"kernel": jnp.eye(6, 3), "bias": jnp.zeros(3)}
    apply = lora.bind(model, scale=1.0)
    ones = jnp.ones((12, 6))
    kept = jnp.stack([apply(base, {}, ones, **training(key)) for key in KEYS[:32]]) != 0
    assert kept.mean() == pytest.approx(0.25, abs=0.05)
    assert 0 < np.abs(np.corrcoef(kept[0].ravel(), kept[1].ravel())[0, 1]) < 0.6


@KINDS
def test_a_clients_masks_are_its_own_at_any_place_of_the_axis(kind):
    task, base, adapter = made(kind)
    train = Train(optax.sgd(0.1), steps=3, batch_size=4)
    examples = Ragged(jnp.arange(12), jnp.int32(12))
    keys = jnp.stack([client_key(KEYS[0], jnp.int32(c), 0) for c in range(3)])
    learn = jax.jit(
        lambda key: train(task.objective(base), adapter, BATCH, examples, key)
    )
    together = jax.jit(jax.vmap(learn))(keys)[0]
    for client in range(3):
        alone = learn(keys[client])[0]
        assert_close(jax.tree.map(itemgetter(client), together), alone, atol=1e-6)
    same = train.batches(examples, keys[0])
    masks = train.batches(examples, keys[1])._replace(index=same.index)
    losses = [
        task.loss(base, adapter, Batch(X[d.index[0]], LABELS[d.index[0]], d.key[0]))
        for d in (same, masks)
    ]
    assert np.abs(losses[0] - losses[1]).max() > 0.01, "clients share no masks"
    assert len(np.unique(jax.random.key_data(same.key), axis=0)) == 3, "nor do steps"


@KINDS
def test_stragglers_and_blocks_of_steps_draw_the_same_masks(kind):
    task, base, adapter = made(kind)
    train = Train(optax.sgd(0.1), steps=4, batch_size=4)
    whole, half = (Ragged(jnp.arange(12), jnp.int32(12), x) for x in (None, 0.5))
    losses = [
        train(task.objective(base), adapter, BATCH, examples, KEYS[0])[1]
        for examples in (whole, half)
    ]
    np.testing.assert_allclose(losses[1][:2], losses[0][:2], rtol=1e-5)
    assert np.isnan(losses[1][2:]).all()


@KINDS
def test_any_loss_and_many_adapters_have_dropout(kind):
    model, base, training = kind()
    loss = lambda apply, batch: jnp.square(apply(batch.inputs)).sum(-1)
    task = objective(model, loss, training=training).at(1.0)
    _, _, adapter = made(kind)
    keyed = BATCH._replace(key=KEYS[0])
    measured, dropped = (task.loss(base, adapter, b) for b in (BATCH, keyed))
    assert np.abs(measured - dropped).max() > 0.01
    clients = [(np.asarray(X), np.asarray(LABELS))] * 2
    options = {"steps": 2, "batch_size": 4, "key": KEYS[0], "progress": False}
    options["lora"] = Lora(rank=2, targets=("first", "second"), whole=("head",))
    trained = [
        train_adapters(classification(model, training=t), base, clients, **options)
        for t in (training, None)
    ]
    assert np.abs(trained[0][1] - trained[1][1]).max() > 0.01


def test_a_raw_key_and_streams_of_a_stack_have_masks_of_their_own():
    def layer(rngs):
        return nnx.Dropout(0.5, rngs=rngs)

    stack = nnx.split_rngs(splits=2)(nnx.vmap(layer))(nnx.Rngs(0))

    class Stacked(nnx.Module):
        def __init__(self):
            self.head = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
            self.drops = stack

        def __call__(self, x):
            return nnx.vmap(lambda drop, x: drop(x), in_axes=(0, None))(self.drops, x)

    model = Stacked()
    apply = lora.bind(model, scale=1.0)
    key = jax.random.PRNGKey(3)
    first, second = apply(of_nnx.variables(model), {}, X, rngs={"dropout": key})
    assert ((first != 0) != (second != 0)).any()


class GivenRngs(nnx.Module):
    """A model that is given its random streams in a call."""

    def __init__(self):
        self.first = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
        self.drop = nnx.Dropout(0.5)

    def __call__(self, x, rngs=None):
        return self.drop(self.first(x), rngs=rngs)


def test_a_model_that_takes_rngs_is_given_them():
    model = GivenRngs()
    task = classification(model, training=lambda key: {"rngs": {"dropout": key}}).at(1)
    base = of_nnx.variables(model)
    losses = [task.loss(base, {}, BATCH._replace(key=key)) for key in KEYS[:2]]
    assert np.abs(losses[0] - losses[1]).max() > 0.01


def checked(kind, training):
    model, base, _ = kind()
    task = classification(model, training=training)
    task.check(base, BATCH, [np.arange(12)], ["client 0"])


@KINDS
@pytest.mark.parametrize(
    ("training", "reason"),
    [
        (lambda key: {"drop": key}, "'drop'"),
        (lambda key: key, "must give a dictionary of keywords"),
        (True, "is True: it must be a function"),
    ],
)
def test_a_training_call_that_the_model_does_not_take_is_refused(
    kind, training, reason
):
    with pytest.raises(ValueError, match=f"training .*{reason}") as caught:
        checked(kind, training)
    assert "\n" not in str(caught.value)


def test_keys_without_a_name_and_keys_that_are_missing_are_refused():
    with pytest.raises(ValueError, match=r"training does not fit .* rngs is a Rngs"):
        checked(of_nnx_model, lambda key: {"rngs": nnx.Rngs(dropout=key)})
    with pytest.raises(ValueError, match=r"training does not fit .* rngs is a Dyn"):
        checked(of_nnx_model, lambda key: {"rngs": key})
    with pytest.raises(ValueError, match="rngs is an empty dictionary"):
        checked(of_nnx_model, lambda key: {"rngs": {}})
    with pytest.raises(ValueError, match=r"training .* PRNG for .dropout."):
        checked(of_linen, lambda key: {"deterministic": False})


def test_a_training_call_without_dropout_is_a_warning(recwarn):
    checked(of_linen, of_linen()[2])
    checked(of_nnx_model, of_nnx_model()[2])
    assert not recwarn.list
    with pytest.warns(UserWarning, match="training changes nothing"):
        checked(of_linen, lambda key: {"rngs": {"dropout": key}})
    with pytest.warns(UserWarning, match="training changes nothing"):
        checked(of_nnx_model, lambda key: {})


def test_a_nnx_model_on_other_inputs_is_refused_in_words():
    model, base, _ = of_nnx_model()
    with pytest.raises(ValueError, match="do not fit together: dot_general"):
        classification(model).check(
            base, Batch(X[:, :4], LABELS), [np.arange(12)], ["client 0"]
        )
