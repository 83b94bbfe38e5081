"""The two apps, with Flower, in one process."""

import jax
import numpy as np
import pytest

from potara_jax.federated.conditions import Conditions
from tests.flower import federations
from tests.flower.federations import COUNTS, PERSONAL, deployed, node, simulated
from tests.helpers_federated import assert_close, assert_equal

pytest.importorskip("flwr", exc_type=ImportError)

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from potara_jax.flower import Rounds, as_client_app, as_server_app, messages
from tests.flower.in_process import InProcess

ROUNDS = 5
KINDS = ("score", "loss")
NODES = {1: (0,), 2: (1,), 3: (2,), 4: (3,)}
A = "base_model.model.dense.lora_A.weight"


def client_app(deployment, nodes, folder):
    held = {key: node(*clients) for key, clients in nodes.items()}
    return as_client_app(
        lambda context: deployment,
        lambda context: held[context.node_id],
        folder=folder and (lambda context: folder / str(context.node_id)),
    )


def federate(
    deployment,
    *,
    nodes=NODES,
    app=None,
    rounds=ROUNDS,
    folder=None,
    evaluate_every=0,
    server_folder=None,
    bound=None,
    **options,
):
    """The outcome of a federation, and its grid."""
    outcomes = []
    app = app or client_app(deployment, nodes, folder)
    grid = InProcess(app, nodes, **options)
    server = as_server_app(
        lambda context: deployment,
        lambda context: Rounds(rounds, gather=2, evaluate_every=evaluate_every),
        nodes=bound and (lambda context: bound),
        folder=server_folder and (lambda context: server_folder),
        on_end=lambda context, outcome: outcomes.append(outcome),
    )
    server(grid, Context(1, 0, {}, RecordDict(), {}))
    return outcomes[0], grid


def kept(grid, like, name, clients=range(4)):
    """What nodes keep of every client, `[C, ...]`."""
    groups = {k: x for c in grid.contexts.values() for k, x in c.state.items()}
    each = [messages.read(groups[f"{name}.{c}"], like) for c in clients]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def states(grid, progress):
    """What clients keep between rounds, of the structure of the simulator's."""
    rows = {"state": progress.states, "owed": progress.owed}
    one = jax.tree.map(lambda x: np.asarray(x)[0], rows)
    like = {"round": np.int32(0), "rows": one}
    return kept(grid, like, "client")["rows"]["state"]


def rows_of(metrics, name):
    return [int(of[name]) for of in metrics.values()]


@pytest.mark.parametrize("name", ["fedit", "fedsa", "scaffold", "ffa"])
def test_a_deployed_federation_is_the_simulated_one(name):
    deployment = deployed(name)
    outcome, grid = federate(deployment)
    progress, report = simulated(deployment, rounds=ROUNDS)
    assert_close(outcome.server, progress.server)
    assert_close(states(grid, progress), progress.states)
    metrics = outcome.result.train_metrics_clientapp
    assert rows_of(metrics, "bytes-up")[-1] == report.bytes_up.sum()
    assert rows_of(metrics, "bytes-down")[-1] == report.bytes_down.sum()


def test_clients_personalise_as_in_the_simulator():
    deployment = deployed("fedsa", personal=PERSONAL)
    outcome, grid = federate(deployment)
    progress, _ = simulated(deployment, rounds=ROUNDS)
    merged = federations.personalised(deployment, progress, rounds=ROUNDS)
    like = jax.tree.map(lambda x: x[0], merged)
    assert_close(kept(grid, like, "personal"), merged)
    assert sorted(outcome.scores) == [0, 1, 2, 3]
    names = {f"{of}{kind}" for of in ("", "federated-", "local-") for kind in KINDS}
    assert all(set(of) == names for of in outcome.scores.values())


def test_nodes_of_several_clients_are_as_nodes_of_one():
    deployment = deployed("scaffold")
    alone, _ = federate(deployment, rounds=2)
    together, grid = federate(deployment, nodes={1: (0, 1, 2), 2: (3,)}, rounds=2)
    assert_close(alone.server, together.server)
    assert {m.metadata.dst_node_id for m in grid.messages} == {1, 2}


def test_a_node_keeps_its_clients_in_a_folder(tmp_path):
    deployment = deployed("scaffold")
    outcome, grid = federate(deployment, rounds=2, folder=tmp_path)
    assert_equal(outcome.server, federate(deployment, rounds=2)[0].server)
    assert all(len(context.state) == 0 for context in grid.contexts.values())
    assert files_of(tmp_path / "1").keys() == {"view.npz", "heard.npz", "client.0.npz"}


def files_of(folder):
    """The files of the only federation that a node has a folder of."""
    (federation,) = folder.iterdir()
    return {path.name: path.read_bytes() for path in federation.iterdir()}


def kind_of(message):
    return message.metadata.message_type


class Killed(BaseException):
    """The server's process ends."""


def killed(kind, number):
    """The server is killed when the third node answers a message."""

    def spoil(grid, key, message, reply):
        config = message.content.config_records.get("config", {})
        if (key, kind_of(message), config.get("number")) == (3, kind, number):
            raise Killed
        return reply

    return spoil


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A federation that nobody kills, and its first node's files."""
    folder = tmp_path_factory.mktemp("nodes")
    options = {"rounds": 3, "evaluate_every": 2, "folder": folder}
    return federate(deployed("scaffold"), **options)[0], files_of(folder / "1")


@pytest.mark.parametrize("at", [("train", 1), ("evaluate", 2)], ids=["train", "eval"])
def test_a_killed_server_goes_on_to_the_same_bytes(at, unbroken, tmp_path):
    deployment, (expected, files) = deployed("scaffold"), unbroken
    options = {"rounds": 3, "evaluate_every": 2, "folder": tmp_path / "nodes"}
    options["server_folder"] = tmp_path / "server"
    with pytest.raises(Killed):
        federate(deployment, spoil=killed(*at), **options)
    outcome, grid = federate(deployment, **options)
    first = grid.messages[len(NODES)]  # after those that ask who has which clients
    assert first.content["config"]["number"] == at[1]
    assert_equal(outcome.server, expected.server)
    assert outcome.scores == expected.scores
    assert outcome.result == expected.result
    assert files_of(tmp_path / "nodes" / "1") == files


def test_a_client_that_has_lost_its_state_is_named(tmp_path, caplog):
    options = {"rounds": 2, "server_folder": tmp_path}
    with pytest.raises(Killed):
        federate(deployed("scaffold"), spoil=killed("train", 1), **options)
    federate(deployed("scaffold"), **options)
    assert "client 2 begins again: its node has lost what it kept" in caplog.text


def test_a_server_goes_on_without_a_node_that_is_gone(tmp_path, caplog):
    options = {"rounds": 2, "server_folder": tmp_path}
    with pytest.raises(Killed):
        federate(deployed("fedit"), spoil=killed("train", 1), **options)
    outcome, _ = federate(deployed("fedit"), nodes={1: (0,), 4: (3,)}, **options)
    metrics = outcome.result.train_metrics_clientapp
    assert rows_of(metrics, "arrived") == [4, 2]
    assert "client 2 is left out: no node has it" in caplog.text


def plain_client():
    """A client without JAX, which adds its number to all that it receives."""
    app = ClientApp()

    @app.query()
    def enrol(message, context):
        client = context.node_id - 1
        config = ConfigRecord({"clients": [client], "examples": [COUNTS[client]]})
        return Message(RecordDict({"config": config}), reply_to=message)

    @app.train()
    def train(message, context):
        arrays = message.content["arrays"]
        new = {k: Array(x.numpy() + context.node_id) for k, x in arrays.items()}
        metrics = MetricRecord({"num-examples": COUNTS[context.node_id - 1]})
        content = {"arrays": ArrayRecord(new), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        metrics = MetricRecord({"score": 1.0, "loss": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def test_clients_of_other_libraries_take_part():
    deployment = deployed("fedit")
    outcome, grid = federate(deployment, app=plain_client(), rounds=2)
    step = np.average([1, 2, 3, 4], weights=COUNTS)
    expected = jax.tree.map(lambda x: x + 2 * step, deployment.adapter)
    assert_close(outcome.server, expected)
    assert outcome.scores == {key: {"score": 1.0, "loss": 0.5} for key in range(4)}
    names = {name for m in grid.messages[4:8] for name in m.content["arrays"]}
    assert names == {f"base_model.model.dense.lora_{side}.weight" for side in "AB"}


# --- Broken nodes --------------------------------------------------------------------


def spoiled(change, *, node=3, at=1):
    """A node whose reply to the training of one round is changed."""

    def spoil(grid, key, message, reply):
        training = kind_of(message) == "train"
        if key != node or not training or message.content["config"]["number"] != at:
            return reply
        return change(grid, reply)

    return spoil


def with_array(array):
    def change(grid, reply):
        name = next(iter(reply.content["arrays"]))
        reply.content["arrays"][name] = Array(*array)
        return reply

    return change


GOOD = messages.npy(np.zeros((2, 5), np.float32))
BAD = {
    "shape": (messages.npy(np.zeros((2, 6), np.float32)), "float32[2, 6], not"),
    "nan": (messages.npy(np.full((2, 5), np.nan, np.float32)), "not finite"),
    "huge": (messages.npy(np.full((2, 5), 1e20, np.float32)), "limit is 1e+06"),
    "dtype": (messages.npy(np.zeros((2, 5))), "float64[2, 5], not"),
    "pickle": (GOOD._replace(stype="pickle"), "is a pickle"),
}


@pytest.fixture(scope="module")
def silent():
    """The server's state where a node says nothing in the second round."""
    outcome, _ = federate(deployed("fedsa"), rounds=3, spoil=spoiled(lambda *_: None))
    return outcome.server


@pytest.mark.parametrize(("array", "why"), BAD.values(), ids=BAD)
def test_a_bad_update_is_refused_and_the_round_goes_on(array, why, silent, caplog):
    spoil = spoiled(with_array(array))
    outcome, _ = federate(deployed("fedsa"), rounds=3, spoil=spoil)
    assert_equal(outcome.server, silent)
    metrics = outcome.result.train_metrics_clientapp
    assert rows_of(metrics, "arrived") == [4, 3, 4]
    line = [x for x in caplog.text.splitlines() if "is refused" in x]
    assert len(line) == 1 and "client 2 is refused" in line[0] and why in line[0]


def test_a_client_that_is_not_heard_stays_as_it_was():
    deployment = deployed("scaffold")
    outcome, grid = federate(deployment, rounds=2, spoil=spoiled(lambda *_: None, at=0))
    progress, _ = simulated(deployment, rounds=1)
    assert "client.2" in grid.contexts[3].state
    control = lambda tree: jax.tree.map(lambda x: x.mean(0), tree)
    assert_close(outcome.server["c"], control(states(grid, progress)))


def test_a_reply_without_any_records_is_left_out(silent):
    def change(grid, reply):
        reply.content = RecordDict()
        return reply

    outcome, _ = federate(deployed("fedsa"), rounds=3, spoil=spoiled(change))
    assert_equal(outcome.server, silent)


def test_a_node_that_has_lost_everything_begins_again(caplog):
    def forget(grid, reply):
        state = grid.contexts[3].state
        for group in list(state):
            del state[group]
        return reply

    outcome, _ = federate(deployed("fedit"), rounds=4, spoil=spoiled(forget, at=0))
    metrics = outcome.result.train_metrics_clientapp
    assert rows_of(metrics, "arrived") == [4, 3, 4, 4]
    assert "this node has that of round -1" in caplog.text


def test_a_node_that_is_gone_is_left_out():
    def leave(grid, reply):
        grid.present.discard(3)
        return reply

    options = {"spoil": spoiled(leave), "evaluate_every": 2}
    outcome, _ = federate(deployed("fedit"), rounds=3, **options)
    metrics = outcome.result.train_metrics_clientapp
    assert rows_of(metrics, "arrived") == [4, 4, 3]
    assert sorted(outcome.scores) == [0, 1, 3]
    assert list(outcome.result.evaluate_metrics_clientapp) == [2]


def test_clients_without_a_node_are_named():
    with pytest.raises(ValueError, match="no node has the clients 1, 3: start theirs"):
        federate(deployed("fedit"), nodes={1: (0,), 3: (2,)})


def test_a_node_may_not_take_another_nodes_client(caplog):
    with pytest.raises(ValueError, match="no node has the clients 2, 3"):
        federate(deployed("fedit"), nodes={1: (0, 1), 2: (1, 2)})
    assert "node 2 is left out: client 1 is on another node already" in caplog.text


def test_a_bound_client_is_its_nodes_alone(caplog):
    claims = {9: (0, 1, 2, 3), 1: (0, 1), 2: (2, 3)}  # the ninth comes first
    bound = {1: (0, 1), 2: (2, 3)}
    outcome, grid = federate(deployed("fedit"), nodes=claims, bound=bound, rounds=1)
    trained = [m.metadata.dst_node_id for m in grid.messages if kind_of(m) == "train"]
    assert sorted(trained) == [1, 2] and sorted(outcome.scores) == [0, 1, 2, 3]
    assert "node 9 is left out: client 0 is bound to node 1" in caplog.text
    for wrong in ({1: (0, 1)}, {1: (0, 1, 2), 2: (2, 3)}):
        with pytest.raises(ValueError, match="must name each of the clients 0 to 3"):
            federate(deployed("fedit"), bound=wrong)


def test_cohorts_are_the_simulators():
    deployment = deployed("fedit", conditions=Conditions(cohort=2, by_examples=True))
    outcome, grid = federate(deployment, rounds=2)
    progress, _ = simulated(deployment, rounds=2)
    assert_close(outcome.server, progress.server)
    trained = [m for m in grid.messages if kind_of(m) == "train"]
    assert len(trained) == 4
