import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.clients.axis import Layout
from potara_jax.federated import ledger, wire
from potara_jax.federated.conditions import Conditions
from potara_jax.federated.privacy import Privacy, clipped, noised
from potara_jax.federated.registry import algorithms
from potara_jax.federated.wire import Wire
from tests.helpers_federated import (
    assert_close,
    assert_equal,
    differs,
    problem,
    run,
    start,
    task,
    whole_batches,
)

COUNTS = (4, 2, 1, 4)
NUMBERS = 16  # of the linear model's factors
WAYS = {
    "bfloat16": (wire.bfloat16(), 2 * NUMBERS),
    "int8": (wire.int8(), NUMBERS + 2 * 4),
    "top_k": (wire.top_k(0.25), 8 * (math.ceil(2.5) + math.ceil(1.5))),
}
each_way = pytest.mark.parametrize("way", WAYS)
REGISTRY = algorithms()


def make(name):
    return REGISTRY[name].make(task, whole_batches)


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": jnp.asarray(rng.normal(size=(40, 5)), jnp.float32),
        "count": jnp.arange(3),
    }


def through(way, value, key=0):
    how = WAYS[way][0]
    return how.decode(how.encode(value, jax.random.key(key)), value)


@each_way
def test_numbers_come_back_nearly_and_integers_as_they_are(way):
    value = tree()
    back = through(way, value)
    assert_equal(back["count"], value["count"])
    assert back["a"].dtype == jnp.float32
    if way != "top_k":
        assert np.abs(back["a"] - value["a"]).max() < 0.05
    assert differs(back["a"], value["a"])


def test_int8_rounds_without_bias():
    value = tree()
    mean = np.mean([through("int8", value, k)["a"] for k in range(300)], 0)
    step = np.abs(value["a"]).max() / 127
    error = np.abs(mean - value["a"])
    assert error.max() < 5 * step * 0.5 / np.sqrt(300)


def test_int8_keeps_zeros():
    zeros = jax.tree.map(jnp.zeros_like, tree())
    assert_equal(through("int8", zeros), zeros)


def test_top_k_keeps_the_largest():
    value = tree()
    found = np.asarray(through("top_k", value)["a"])
    kept = found != 0
    assert kept.sum() == 50
    np.testing.assert_array_equal(found[kept], np.asarray(value["a"])[kept])
    assert np.abs(value["a"])[kept].min() >= np.abs(value["a"])[~kept].max()


def test_top_k_share_is_checked():
    with pytest.raises(ValueError, match="top-k share is 0"):
        wire.top_k(0.0)


@each_way
def test_the_ledger_counts_what_is_compressed(way):
    how, expected = WAYS[way]
    _, report = run(make("fedit"), problem(COUNTS), wire=Wire(how))
    np.testing.assert_array_equal(report.bytes_up, expected)
    np.testing.assert_array_equal(report.bytes_down, 4 * NUMBERS)


@pytest.mark.parametrize("name", ["fedit", "scaffold", "fedalt"])
@each_way
def test_compressed_federations_come_near_the_exact_one(name, way):
    given, algorithm = problem(COUNTS), make(name)
    pick = {"scaffold": lambda server: server["x"], "fedalt": lambda s: s["sum"]}
    of_server = lambda progress: pick.get(name, lambda x: x)(progress.server)
    before, number = of_server(start(algorithm, given)), 60
    exact, _ = run(algorithm, given, number=number)
    other, _ = run(algorithm, given, number=number, wire=Wire(WAYS[way][0]))
    far = lambda x, y: np.abs(x["dense"]["b"] - y["dense"]["b"]).max()
    gap = far(of_server(other), of_server(exact))
    assert 0 < gap < 0.2 * far(of_server(exact), before)


def test_what_is_not_sent_is_owed_and_sent_later():
    """All that a client ever changed has arrived or is owed."""
    how, total, arrived = wire.top_k(0.1), 0.0, 0.0
    owed = jax.tree.map(jnp.zeros_like, {"x": tree()["a"]})
    reference = {"x": jnp.zeros((40, 5))}
    for seed in range(30):
        upload = {"x": tree(seed)["a"]}
        sent = wire.send(Wire(how), upload, reference, owed, jax.random.key(0))
        total, arrived, owed = (
            total + upload["x"],
            arrived + sent.upload["x"],
            sent.owed,
        )
    assert_close(arrived + owed["x"], total, rtol=1e-4, atol=1e-4)
    assert np.abs(owed["x"]).max() < np.abs(total).max()


@pytest.mark.parametrize("name", ["rolora", "hetlora", "scaffold"])
@each_way
def test_any_algorithm_goes_through_any_wire(name, way):
    progress, report = run(
        make(name), problem(COUNTS), number=4, wire=Wire(WAYS[way][0])
    )
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(progress))
    assert np.all(report.arrived)


def test_nothing_is_owed_where_a_client_is_lost():
    half = Conditions(dropout=0.5)
    given = problem(COUNTS)
    progress, report = run(
        make("fedit"), given, wire=Wire(wire.top_k(0.1)), conditions=half
    )
    (owed,) = progress.owed
    size = np.abs(owed["dense"]["a"]).sum((1, 2))
    np.testing.assert_array_equal(size > 0, report.arrived)
    assert 0 < report.arrived.sum() < 4


# --- Privacy --------------------------------------------------------------------------


def test_a_change_is_clipped_to_its_norm_and_no_further():
    value = tree()
    norm = float(jnp.linalg.norm(value["a"]))
    short = clipped(Privacy(norm / 2, 0.0), value)
    assert_close(short["a"], value["a"] / 2)
    assert_equal(short["count"], value["count"])
    assert_close(clipped(Privacy(2 * norm, 0.0), value), value)


def test_the_noise_of_the_sum_is_clip_times_noise():
    uploads = {"x": jnp.zeros((6, 2000))}
    keys = jax.random.split(jax.random.key(0), 6)
    noisy = noised(Privacy(2.0, 1.5), uploads, keys)["x"]
    assert np.std(noisy.sum(0)) == pytest.approx(3.0, rel=0.05)


def test_a_federation_without_noise_and_a_wide_clip_is_the_plain_one():
    given = problem((4, 4, 4))
    plain, _ = run(make("fedit"), given, number=3)
    private, _ = run(
        make("fedit"), given, number=3, wire=Wire(privacy=Privacy(1e6, 0.0))
    )
    assert_close(private.server, plain.server)


def test_no_client_moves_the_server_by_more_than_its_clip():
    given, how = problem((4, 4, 4)), Wire(wire.top_k(0.5), Privacy(0.01, 0.0))
    before = start(make("fedit"), given).server
    after = run(make("fedit"), given, wire=how)[0].server
    change = jax.tree.map(jnp.subtract, after, before)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(change)))
    assert 0.002 < norm <= 0.01 + 1e-6


def test_noise_comes_from_the_seed_and_the_round():
    given, how = problem(COUNTS), Wire(privacy=Privacy(0.1, 1.0))
    one, _ = run(make("fedit"), given, number=2, wire=how)
    same, _ = run(make("fedit"), given, number=2, wire=how, layout=Layout(2))
    other, _ = run(make("fedit"), given, number=2, wire=how, seed=1)
    assert_close(one, same)
    assert differs(one, other)


def test_a_part_counts_its_share_alone():
    part = ledger.Part({"x": jnp.zeros((10, 4))}, jnp.int32(1), jnp.int32(4))
    assert ledger.payload_bytes((part, jnp.zeros(3, jnp.int8))) == 40 + 3
