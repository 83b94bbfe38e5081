"""Keys by purpose: distinct, stable, and independent in what they are used for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax import keys
from potara_jax.clients.training import Train, client_key
from potara_jax.data.federation import Ragged
from potara_jax.federated import factors, wire
from potara_jax.federated.conditions import Conditions, draw_cohort, lost, slowed
from potara_jax.federated.privacy import Privacy, noised
from potara_jax.federated.registry import algorithms
from tests.helpers_federated import task, whole_batches

KEY = jax.random.key(0)
CLIENTS, ROUNDS, EXAMPLES = 60, 60, 4
HALF = Conditions(cohort=0.5, dropout=0.5, stragglers=0.5)


def test_purposes_and_small_numbers_have_different_keys():
    named = [keys.subkey(KEY, purpose) for purpose in keys.PURPOSES]
    numbered = list(jax.random.split(KEY, 50))
    numbered += [jax.random.fold_in(KEY, number) for number in range(50)]
    data = lambda each: {tuple(jax.random.key_data(key).tolist()) for key in each}
    assert len(data(named)) == len(keys.PURPOSES)
    assert not data(named) & data(numbered)


def test_a_purpose_has_the_same_key_whatever_the_others_are():
    words = jax.random.key_data(keys.subkey(KEY, "dropout")).tolist()
    assert words == [116798348, 4143519482]


# --- Independence of what is drawn for a client in a round ---------------------------

ADAPTER = {"dense": {"a": jnp.zeros((3, 1)), "b": jnp.zeros((1, 2))}}
TRAIN = Train(whole_batches.optimizer, steps=EXAMPLES, batch_size=1)
EXAMPLE = Ragged(jnp.arange(EXAMPLES), jnp.int32(EXAMPLES))


def drawn(client, number):
    """All that chance decides for a client in a round, each as a few numbers."""
    key = client_key(KEY, client, number)
    upload = {"x": jnp.full(3, 0.5).at[0].set(127.0)}
    coded = wire.int8().encode(upload, keys.subkey(key, "compression"))["x"]["code"]
    noise_key = keys.subkey(key, "noise")[None]
    none = {"x": jnp.zeros((1, 3))}
    fresh = factors.drawn(ADAPTER, keys.subkey(key, "factors"))
    return {
        "batches": jnp.argsort(TRAIN.batches(EXAMPLE, key).index.ravel()),  # places
        "steps": jax.random.uniform(TRAIN.batches(EXAMPLE, key).key[0], (3,)),
        "samples": jax.random.uniform(keys.subkey(key, "samples"), (3,)),
        "stragglers": slowed(HALF, EXAMPLE, key).share[None],
        "dropout": lost(HALF, key)[None],
        "compression": coded[1:],
        "noise": noised(Privacy(1.0, 1.0), none, noise_key)["x"][0],
        "factors": fresh["dense"]["a"].ravel(),
    }


def in_the_cohort(number):
    """Who takes part in a round, `[C]`."""
    cohort = draw_cohort(HALF, jnp.ones(CLIENTS), KEY, number).client
    return jnp.zeros(CLIENTS).at[cohort].set(1.0)


@pytest.fixture(scope="module")
def draws():
    """Numbers of every purpose, standardised, `[C N, k]` each."""
    clients, rounds = jnp.arange(CLIENTS), jnp.arange(ROUNDS)
    over = lambda fn, *axes: jax.vmap(fn, in_axes=axes)
    all_draws = jax.jit(over(over(drawn, None, 0), 0, None))(clients, rounds)
    all_draws["cohorts"] = jax.jit(jax.vmap(in_the_cohort))(rounds).T[..., None]
    flat = lambda x: np.asarray(x, np.float64).reshape(CLIENTS * ROUNDS, -1)
    centred = {name: flat(x) - flat(x).mean(0) for name, x in all_draws.items()}
    return {name: x / x.std(0) for name, x in centred.items()}


NAMES = ("batches", "cohorts", "compression", "dropout", "factors", "noise")
NAMES += ("samples", "stragglers")
PAIRS = [(a, b) for i, a in enumerate(NAMES) for b in NAMES[i + 1 :]]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_what_two_purposes_draw_is_uncorrelated(draws, one, other):
    size = CLIENTS * ROUNDS
    correlation = draws[one].T @ draws[other] / size
    of_squares = (draws[one] ** 2 - 1).T @ (draws[other] ** 2 - 1) / size
    assert np.abs(correlation).max() < 4.5 / np.sqrt(size)
    assert np.abs(of_squares).max() < 6 * 2 / np.sqrt(size)


def test_every_example_is_as_often_in_what_arrives(draws):
    """The first batch of a client that is not lost has each example alike."""
    places = draws["batches"]
    arrived = draws["dropout"][:, 0] < 0
    first = places[arrived] == places.min(0)
    assert np.abs(first.mean(0) - 1 / EXAMPLES).max() < 0.05


def test_gates_and_private_factors_come_from_the_seed_and_the_client():
    adapter = ADAPTER
    for name, pick in (("fedalt", "model"), ("pf2lora", "dense")):
        algorithm = algorithms()[name].make(task, whole_batches)
        key = jax.random.split(KEY, 3)
        first = [algorithm.init_client(adapter, 0, k)[pick] for k in key]
        flat = [
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(f)]) for f in first
        ]
        assert len({f.tobytes() for f in flat}) == 3
