"""What travels, and a federation without Flower: its server and clients alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.federated import ledger
from potara_jax.federated.conditions import Conditions
from potara_jax.federated.privacy import Privacy
from potara_jax.federated.registry import algorithms
from potara_jax.federated.wire import Wire, int8
from potara_jax.flower import client, server
from potara_jax.flower.messages import num_bytes
from tests.flower.federations import COUNTS, PERSONAL, deployed, node, simulated
from tests.helpers_federated import assert_close

pytestmark = pytest.mark.slow

INT8 = Wire(int8())
HOMES = {0: 10, 1: 10, 2: 11, 3: 12}  # the first node has two clients


def federate(deployment, *, rounds):
    """The server's last state, and the bytes of the last round."""
    nodes = {10: node(0, 1), 11: node(2), 12: node(3)}
    memory, heard = {key: {} for key in nodes}, {}
    state, counts = server.begin(deployment), dict(enumerate(COUNTS))
    for number in range(rounds):
        cohort = server.cohort_of(deployment, counts, deployment.key, number)
        replies, down = {}, 0
        asked = server.orders(state, cohort.client, HOMES, heard, number)
        for key, order in asked.items():
            news = server.news(deployment, state, number, order.since)
            down += len(order.clients) * num_bytes(news)
            args = deployment, nodes[key], memory[key], news, order
            answer, memory[key] = client.train(*args)
            replies |= {c: r.arrays for c, r in answer.items() if r.metrics["arrived"]}
            heard[key] = number
        like = deployment.messages[deployment.place(number)]
        messages, refused = server.checked(replies, like, largest=1e6)
        assert refused == {}
        args = cohort, messages, deployment.key, number
        state = server.next_state(deployment, state, *args)
    up = sum(num_bytes(arrays) for arrays in replies.values())
    return state.server, down, up


@pytest.mark.parametrize(
    ("name", "wire", "conditions"),
    [
        ("rolora", INT8, Conditions(cohort=3, dropout=0.3, stragglers=0.5)),
        ("fedalt", INT8, Conditions()),
    ],
)
def test_conditions_and_wires_are_those_of_the_simulator(name, wire, conditions):
    deployment = deployed(name, conditions=conditions, wire=wire)
    state, _, up = federate(deployment, rounds=4)
    progress, report = simulated(deployment, rounds=4)
    assert_close(state, progress.server)
    assert up == report.bytes_up.sum()


def test_what_clients_know_already_does_not_travel_again():
    deployment = deployed("rolora")
    _, down, up = federate(deployment, rounds=3)
    _, report = simulated(deployment, rounds=3)
    assert down == report.bytes_down.sum() + len(COUNTS) * report.bytes_announced
    assert up == report.bytes_up.sum()


NEVER_CHANGE = ("clients", "initial", "a")  # parts of servers' states
IN_THE_BASE = ("fedex", "flora")


def after_a_round(deployment):
    """The bytes that travel to a client, and those that the ledger counts."""
    state = server.begin(deployment)
    constant = lambda name: name.split(".")[0] in NEVER_CHANGE
    changed = {name: int(not constant(name)) for name in state.changed}
    arrays = server.news(deployment, state._replace(changed=changed), 1, 0)
    begin = deployment.algorithm.init_client
    kept = begin(deployment.adapter, jnp.int32(0), deployment.key)
    received = deployment.turn(1).broadcast(deployment.first_server, kept)
    return num_bytes(arrays), int(ledger.payload_bytes(received))


@pytest.mark.parametrize("name", sorted({*algorithms()} - {"rolora", *IN_THE_BASE}))
def test_what_travels_is_what_the_ledger_counts(name):
    travels, counted = after_a_round(deployed(name))
    assert travels == counted


@pytest.mark.parametrize("name", IN_THE_BASE)
def test_a_delta_in_the_base_travels_dense(name):
    deployment = deployed(name)
    travels, counted = after_a_round(deployment)
    deltas = deployment.first_server["deltas"]
    assert travels == counted + sum(x.nbytes for x in deltas.values())


def test_what_is_drawn_from_the_seed_never_travels():
    deployment = deployed("ffa")
    first = server.begin(deployment)
    names = {name.split(".")[0] for name in server.news(deployment, first, 0, -1)}
    assert names == {"rest"}


def test_a_node_that_missed_a_message_says_so():
    deployment, memory = deployed("fedit"), {}
    order = client.Order(3, (2,), since=2, accepted=(-1,))
    with pytest.raises(ValueError, match="this node has that of round -1"):
        client.train(deployment, node(2), memory, {}, order)


def test_mistakes_are_named_before_anything_starts():
    with pytest.raises(ValueError, match="not one adapter of the base"):
        deployed("fedalt", personal=PERSONAL)
    with pytest.raises(ValueError, match="choose a wire as it is"):
        deployed("hetlora", wire=INT8).reference(0)
    with pytest.raises(ValueError, match="dropout is 2"):
        deployed("fedit", conditions=Conditions(dropout=2))


def test_under_privacy_the_server_has_a_key_of_its_own():
    public, private = (
        deployed("fedit"),
        deployed("fedit", wire=Wire(None, Privacy(1, 1))),
    )
    same = lambda x, y: bool((jax.random.key_data(x) == jax.random.key_data(y)).all())
    assert same(server.secret_key(public), public.key)
    assert not same(server.secret_key(private), private.key)


def test_nobody_arrives_and_the_server_stays_as_it_is():
    deployment = deployed("fedit")
    state = server.begin(deployment)
    cohort = server.cohort_of(deployment, dict(enumerate(COUNTS)), deployment.key, 0)
    after = server.next_state(deployment, state, cohort, {}, deployment.key, 0)
    jax.tree.map(np.testing.assert_array_equal, after.server, state.server)
    assert after.changed == state.changed and after.accepted == {}
