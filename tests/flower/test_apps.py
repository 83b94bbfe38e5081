"""The two apps, with Flower, in one process."""

import jax
import numpy as np
import pytest

from tests.flower import federations
from tests.flower.federations import PERSONAL, deployed, node, simulated
from tests.helpers_federated import assert_close

pytest.importorskip("flwr", exc_type=ImportError)

from flwr.app import Context, RecordDict

from potara_jax.flower import Rounds, as_client_app, as_server_app, messages
from tests.flower.in_process import InProcess

ROUNDS = 5
KINDS = ("score", "loss")
NODES = {1: (0,), 2: (1,), 3: (2,), 4: (3,)}


def federate(deployment, *, nodes=NODES, rounds=ROUNDS, folder=None, **options):
    """The outcome of a federation, and its grid."""
    outcomes = []
    held = {key: node(*clients) for key, clients in nodes.items()}
    app = as_client_app(
        lambda context: deployment,
        lambda context: held[context.node_id],
        folder=folder and (lambda context: folder / str(context.node_id)),
    )
    grid = InProcess(app, nodes, **options)
    server = as_server_app(
        lambda context: deployment,
        lambda context: Rounds(rounds, timeout=5),
        on_end=lambda context, outcome: outcomes.append(outcome),
    )
    server(grid, Context(1, 0, {}, RecordDict(), {}))
    return outcomes[0], grid


def kept(grid, like, name, clients=range(4)):
    """What nodes keep of every client, `[C, ...]`."""
    groups = {k: x for c in grid.contexts.values() for k, x in c.state.items()}
    each = [messages.read(groups[f"{name}.{c}"], like) for c in clients]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


@pytest.mark.parametrize("name", ["fedit", "fedsa", "scaffold", "ffa"])
def test_a_deployed_federation_is_the_simulated_one(name):
    deployment = deployed(name)
    outcome, grid = federate(deployment)
    progress, _ = simulated(deployment, rounds=ROUNDS)
    assert_close(outcome.server, progress.server)


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
