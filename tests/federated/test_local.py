import jax
import numpy as np
import pytest

from potara_jax import federated
from tests.helpers_federated import (
    ALGORITHMS,
    assert_close,
    assert_equal,
    differs,
    poisoned,
    problem,
    run,
    start,
    task,
)

CLIENTS = 4
FEDIT, LOCAL = ALGORITHMS["FedIT"], ALGORITHMS["local"]


def client_of(tree, client):
    return jax.tree.map(lambda x: x[client], tree)


def test_nothing_travels():
    progress, report = run(LOCAL, problem(), number=2)
    assert progress.server == ()
    np.testing.assert_array_equal(report.bytes_down, np.zeros(CLIENTS))
    np.testing.assert_array_equal(report.bytes_up, np.zeros(CLIENTS))


def test_every_client_starts_from_the_same_adapter():
    progress = start(LOCAL, problem())
    for client in range(CLIENTS):
        assert_equal(client_of(progress.states, client), problem().adapter)


def test_the_first_loss_is_that_of_the_adapter_given():
    given, whole = problem(), ALGORITHMS["local, whole batches"]
    federated, _ = run(FEDIT, given, number=2)
    continued = given._replace(adapter=federated.server)
    for start_from in (given, continued):
        _, report = run(whole, start_from)
        losses = task.loss(given.shared.base, start_from.adapter, given.shared.pool)
        wanted = [np.mean(part) for part in np.split(losses, [4, 6, 7])]
        np.testing.assert_allclose(report.losses[:, 0], wanted, rtol=1e-5)


def test_clients_are_independent_of_each_other_to_the_bit():
    changed = poisoned(problem(), 1, 0.5)
    one, _ = run(LOCAL, problem(), number=2)
    other, _ = run(LOCAL, changed, number=2)
    for client in range(CLIENTS):
        same = not differs(*(client_of(p.states, client) for p in (one, other)))
        assert same == (client != 1)


def test_one_client_alone_learns_the_same_by_both_algorithms():
    local, _ = run(LOCAL, problem((7,)), number=3)
    federated, _ = run(FEDIT, problem((7,)), number=3)
    assert_close(client_of(local.states, 0), federated.server)
    assert differs(federated.server, problem((7,)).adapter)


def test_local_training_lowers_every_clients_loss():
    _, first = run(ALGORITHMS["local, whole batches"], problem())
    _, last = run(ALGORITHMS["local, whole batches"], problem(), number=10)
    assert np.all(last.losses[:, -1] < first.losses[:, 0])


def test_personalised_adapters_of_local_training_are_the_clients_own():
    progress, _ = run(LOCAL, problem(), number=2)
    adapters = federated.personalised(
        LOCAL, problem().shared, progress, problem().examples
    )
    assert_equal(adapters, progress.states)
    assert differs(client_of(adapters, 0), client_of(adapters, 1))


@pytest.mark.parametrize("counts", [(7,), (4, 2, 1, 4)])
def test_personalised_adapters_of_fedit_are_the_servers(counts):
    progress, _ = run(FEDIT, problem(counts), number=2)
    adapters = federated.personalised(
        FEDIT, problem(counts).shared, progress, problem(counts).examples
    )
    assert jax.tree.leaves(adapters)[0].shape[0] == len(counts)
    for client in range(len(counts)):
        assert_equal(client_of(adapters, client), progress.server)
