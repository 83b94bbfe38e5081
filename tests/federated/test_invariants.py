"""What each algorithm must be in special cases, and what its aggregate must equal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from potara_jax import federated
from potara_jax.adapters import algebra
from potara_jax.clients.training import Train, client_key
from potara_jax.federated import factors, ledger
from potara_jax.federated.algorithms.feddpa import instance_wise
from potara_jax.federated.algorithms.fedopt import with_server_optimizer
from potara_jax.federated.conditions import Conditions
from potara_jax.federated.interface import Size
from potara_jax.federated.progress import known
from potara_jax.federated.registry import algorithms
from potara_jax.federated.rounds import make_round
from tests.helpers_federated import (
    SCALE,
    assert_close,
    assert_equal,
    differs,
    problem,
    run,
    start,
    task,
)

COUNTS = (4, 2, 1, 4)
WEIGHTS = jnp.array(COUNTS) / sum(COUNTS)
train = Train(optax.sgd(0.1), steps=3, batch_size=4)
REGISTRY = algorithms()


def make(name, **how):
    return REGISTRY[name].make(task, how.pop("train", train), **how)


FEDIT, LOCAL = make("fedit"), make("local")


def models(algorithm, given, progress, number=4):
    return federated.personalised(
        algorithm,
        given.shared,
        progress,
        given.examples,
        number=number,
    )


def trained(algorithm, number=4, counts=COUNTS):
    given = problem(counts)
    return models(algorithm, given, run(algorithm, given, number=number)[0], number)


def uploads(seed=0, clients=4, rank=2):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"dense": {"a": normal(clients, 5, rank), "b": normal(clients, rank, 3)}}


def mean_delta(stacked, weights=WEIGHTS):
    a, b = (np.asarray(stacked["dense"][name], np.float64) for name in "ab")
    return np.einsum("c,cdr,crk->dk", np.asarray(weights), a, b)


def delta(adapter):
    return np.asarray(algebra.delta(adapter["dense"]))


# --- Special cases --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("fedprox", {"mu": 0.0}),
        ("fedrot", {"strength": 0.0}),
        ("lora_fair", {"distance": "frobenius", "penalty": 1e8}),
        ("lora_fair", {"distance": "cosine", "steps": 0}),
    ],
)
def test_algorithms_that_are_fedit_in_a_special_case(name, how):
    special, fedit = make(name, **how), FEDIT
    assert_close(trained(special), trained(fedit), rtol=1e-4, atol=1e-5)
    assert differs(trained(make(name)), trained(fedit))


def test_fedrpca_of_no_amplification_is_fedit():
    special = make("fedrpca", boost=1.0)
    assert_close(trained(special), trained(FEDIT), rtol=1e-4, atol=1e-5)


def test_scaffold_is_fedit_with_sgd_in_its_first_round():
    special = make("scaffold", learning_rate=0.1)
    assert_close(trained(special, number=1), trained(FEDIT, number=1))
    assert differs(trained(special, number=2), trained(FEDIT, number=2))


def test_ditto_without_its_pull_is_local_training_and_its_common_model_fedit():
    progress, _ = run(make("ditto", strength=0.0), problem(COUNTS), number=4)
    assert_close(progress.states["personal"], trained(LOCAL))
    assert_close(progress.server, run(FEDIT, problem(COUNTS), number=4)[0].server)


@pytest.mark.parametrize(("alpha", "same"), [(0.0, "fedit"), (1.0, "local")])
def test_apfl_at_the_ends_of_its_mixture(alpha, same):
    special = make("apfl", alpha=alpha, learning_rate=0.0)
    assert_close(trained(special), trained(make(same)))


def test_apfl_learns_its_mixture_within_its_range():
    progress, _ = run(make("apfl", learning_rate=1.0), problem(COUNTS), number=4)
    alpha = progress.states["alpha"]
    assert np.all((alpha >= 0) & (alpha <= 1)) and np.ptp(alpha) > 0


def test_feddpa_without_a_share_keeps_the_local_adapters_at_rest():
    given = problem(COUNTS)
    progress, _ = run(make("feddpa_t", share=0.0), given, number=4)
    before = start(FEDIT, given).server
    for client in range(4):
        own = jax.tree.map(lambda x, c=client: x[c], progress.states["local"])
        assert_close(own, before)
    assert_close(progress.server, run(FEDIT, given, number=4)[0].server)


def test_feddpa_mixes_by_nearness_to_the_anchors():
    given = problem(COUNTS)
    progress, _ = run(make("feddpa_t"), given, number=4)
    model = jax.tree.map(lambda x: x[0], models(make("feddpa_t"), given, progress))
    base, pool = given.shared.base, given.shared.pool
    features = lambda batch: np.asarray(task.features(base, model["local"], batch))
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    share = 0.5 * (unit(features(pool)) @ unit(features(model["anchors"])).T).mean(1)
    ends = [task.logits(base, model[name], pool) for name in ("local", "federated")]
    expected = share[:, None] * ends[0] + (1 - share[:, None]) * ends[1]
    found = instance_wise(task).logits(base, model, pool)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    released = instance_wise(task, to_local=False).logits(base, model, pool)
    expected = share[:, None] * ends[1] + (1 - share[:, None]) * ends[0]
    assert_close(released, expected, rtol=1e-4, atol=1e-5)


def test_feddpa_has_the_clients_own_anchors_even_where_it_was_never_drawn():
    given, algorithm = problem(COUNTS), make("feddpa_t", anchors=3)
    progress, report = run(algorithm, given, conditions=Conditions(cohort=1))
    found = models(algorithm, given, progress)["anchors"]
    on_host = given.shared._replace(pool=jax.tree.map(np.asarray, given.shared.pool))
    same = models(algorithm, given._replace(shared=on_host), progress)["anchors"]
    assert_equal(found, same)
    index, count = map(np.asarray, given.examples[:2])
    for client in range(4):
        own = index[client, np.arange(3) % count[client]]
        assert_equal(found.inputs[client], given.shared.pool.inputs[own])
    assert len(report.cohort) == 1


def test_fedsa_leaves_b_alone_where_all_a_are_equal():
    given = problem(COUNTS)
    algorithm = make("fedsa")
    server = algorithm.init(given.adapter, Size(4, 4))
    same = jax.tree.map(lambda x: jnp.stack([x] * 4), server)
    assert_close(algorithm.aggregate(server, same, WEIGHTS), server)


def test_fedalt_of_two_clients_has_the_other_for_the_rest_of_the_world():
    given, algorithm = problem((4, 2)), make("fedalt")
    progress, _ = run(algorithm, given, number=3)
    for client in range(2):
        pick = lambda tree, c: jax.tree.map(lambda x: x[c], tree)
        rest = algorithm.broadcast(progress.server, pick(progress.states, client))
        other = pick(progress.states["model"]["personal"], 1 - client)
        assert_close(rest, other, rtol=1e-4, atol=1e-5)


def test_fedala_learns_its_weights_until_they_settle_and_then_once_a_round():
    """Losses that vary by less than the threshold end the first time after ten passes.

    A loss that never settles goes on to the last pass that is allowed.
    """
    given, steps = problem(COUNTS), 3
    for threshold, passes in ((1e9, 11), (0.0, 13)):
        algorithm = make("fedala", threshold=threshold, passes=13)
        taken = []
        for number in (1, 2, 3):
            _, report = run(algorithm, given, number=number)
            taken.append(np.isfinite(report.losses).sum(1))
        assert np.all(taken[0] == steps)
        assert np.all(taken[1] == steps * (passes + 1))
        assert np.all(taken[2] == steps * 2)


def test_fedala_learns_in_as_few_steps_as_a_straggler_takes():
    given = problem(COUNTS)
    slow = given.examples._replace(share=jnp.array([0.3, 1, 1, 1]))
    _, report = run(make("fedala"), given._replace(examples=slow), number=3)
    np.testing.assert_array_equal(np.isfinite(report.losses).sum(1), [2, 6, 6, 6])


def test_fedala_learns_on_a_share_of_the_examples():
    """Half of the largest clients' examples, each client's own."""
    from potara_jax.federated.algorithms.fedala import _sampled

    examples = jax.tree.map(lambda x: x[0], problem((10,)).examples)
    seen = set()
    for seed in range(5):
        index, count, _ = _sampled(examples, 0.5, jax.random.key(seed))
        assert int(count) == 5 and len(set(index[:5].tolist())) == 5
        seen |= set(index[:5].tolist())
    assert seen == set(range(10))


def test_fedala_takes_all_of_the_server_in_its_first_round():
    special = make("fedala")
    assert_close(
        run(special, problem(COUNTS))[0].server, run(FEDIT, problem(COUNTS))[0].server
    )
    progress, _ = run(special, problem(COUNTS), number=4)
    weights = jax.tree.leaves(progress.states["weights"])
    assert all(np.all((w >= 0) & (w <= 1)) for w in weights)
    assert any(np.any(w < 1) for w in weights)


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_the_head_never_leaves_the_client(name):
    head = {"head": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
    adapter = problem(COUNTS).adapter | head
    algorithm = make(name)
    server = algorithm.init(adapter, Size(4, 4))
    state = algorithm.init_client(adapter, 0, jax.random.key(0))
    assert set(state) == {"head"} and set(server) == {"dense"}


def test_the_last_block_is_private_where_there_is_no_head():
    entry = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3))}
    adapter = {f"block_{i}/{m}": entry for i in (0, 2, 10) for m in ("query", "value")}
    algorithm = make("fedper")
    private = algorithm.init_client(adapter, 0, jax.random.key(0))
    assert set(private) == {"block_10/query", "block_10/value"}


def test_pf2lora_private_factors_are_smaller_and_start_at_no_effect():
    given, algorithm = problem(COUNTS), make("pf2lora")
    progress = start(algorithm, given)
    assert progress.states["dense"]["a"].shape[-1] == 1
    model = jax.tree.map(lambda x: x[0], models(algorithm, given, progress))
    assert_close(delta(model), delta(given.adapter))


def test_fdlora_copies_the_shared_factors_every_so_many_rounds():
    algorithm, given = make("fdlora", every=3), problem(COUNTS)
    states = [run(algorithm, given, number=n)[0].states for n in (1, 2, 3, 4)]
    kept = [state["personal"] for state in states]
    assert_equal(kept[0], kept[1])
    assert_equal(kept[1], kept[2])
    assert differs(kept[2], kept[3])


def test_fdlora_averages_no_personal_factors_that_were_never_trained():
    """Clients of their first round copy; those of none have the shared factors twice.

    Rounds 0 to 3 have cohorts of one client of four, and `every` is 3.
    """
    algorithm, given, copied = make("fdlora", every=3), problem(COUNTS), {}
    alone, key = Conditions(cohort=1), jax.random.key(1)
    step, progress = make_round(algorithm, conditions=alone), start(algorithm, given)
    for number in range(4):
        args = given.shared, progress, given.examples, key, number
        progress, report = step(*args)
        (client,) = report.cohort.tolist()
        if copied.get(client, -1) < number // 3:
            copied[client] = number // 3
    periods = [copied.get(client, -1) for client in range(4)]
    np.testing.assert_array_equal(progress.states["period"], periods)
    assert 1 < len(copied) < 4
    model = models(algorithm, given, progress)
    for client in range(4):
        personal, shared = (model[x]["dense"]["b"][client] for x in model)
        assert np.any(personal != shared) == (client in copied)
        assert np.any(personal != given.adapter["dense"]["b"])


def test_fdlora_server_takes_nesterov_steps():
    algorithm, given = make("fdlora", every=9), problem(COUNTS)
    old = run(algorithm, given)[0].server["shared"]
    mean = run(FEDIT, given)[0].server
    assert_close(old, mean)
    server = run(algorithm, given)[0].server
    stacked = uploads()
    new = algorithm.aggregate(server, stacked, WEIGHTS)["shared"]["dense"]["a"]
    mean = jnp.tensordot(WEIGHTS, stacked["dense"]["a"], 1)
    a = old["dense"]["a"]
    assert_close(new, a - 1.5 * (a - mean))  # the first step: g + .5 g


def test_pfedme_moves_towards_the_personal_model():
    given = problem(COUNTS)
    progress, _ = run(make("pfedme", rate=1.0, inner=1, strength=0.0), given)
    plain, _ = run(FEDIT, given)
    assert_close(progress.server, plain.server)
    assert_close(progress.states["theta"], run(LOCAL, given)[0].states)


def test_a_server_that_goes_all_the_way_is_fedit():
    special = with_server_optimizer(FEDIT, optax.sgd(1.0))
    assert_close(trained(special), trained(FEDIT))
    assert_close(trained(make("fedavgm", momentum=0.0)), trained(FEDIT))


def test_momentum_of_the_server_starts_in_its_second_round():
    special = make("fedavgm", momentum=0.5)
    assert_close(trained(special, number=1), trained(FEDIT, number=1))
    assert differs(trained(special, number=2), trained(FEDIT, number=2))


def test_fedadam_takes_the_steps_of_adam_on_the_mean_change():
    algorithm, given = make("fedadam", rate=0.1, eps=1e-3), problem(COUNTS)
    server = algorithm.init(given.adapter, Size(4, 4))
    x = np.asarray(given.adapter["dense"]["a"], np.float64)
    first, second = np.zeros_like(x), np.zeros_like(x)
    for step in (1, 2, 3):
        stacked = uploads(step)
        server = algorithm.aggregate(server, stacked, WEIGHTS)
        change = x - np.tensordot(WEIGHTS, stacked["dense"]["a"], 1)
        first = 0.9 * first + 0.1 * change
        second = 0.99 * second + 0.01 * change**2
        unbiased = first / (1 - 0.9**step), second / (1 - 0.99**step)
        x = x - 0.1 * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-3)
    assert_close(algorithm.broadcast(server, ())["dense"]["a"], x, rtol=1e-4)


def test_algorithms_of_several_turns_take_a_server_optimizer():
    special = with_server_optimizer(make("rolora"), optax.sgd(1.0))
    assert_close(trained(special), trained(make("rolora")))


# --- Aggregates that are exact --------------------------------------------------------


@pytest.mark.parametrize("name", ["ffa", "rolora"])
def test_with_one_factor_fixed_the_mean_is_exact(name):
    algorithm, given = make(name), problem(COUNTS)
    a = given.adapter["dense"]["a"]
    b = uploads()["dense"]["b"]
    server = algorithm.init(given.adapter, Size(4, 4))
    server = algorithm.aggregate(server, {"dense": {"b": b}}, WEIGHTS)
    model = algorithm.personalise(
        given.shared._replace(common=algorithm.common(server)),
        algorithm.broadcast(server, ()),
        (),
        None,
    )
    same = {"dense": {"a": jnp.stack([a] * 4), "b": b}}
    assert_close(delta(model), mean_delta(same))


def test_rolora_trains_b_first_and_then_a():
    given, algorithm = problem(COUNTS), make("rolora")
    first, second = (run(algorithm, given, number=n)[0].server["dense"] for n in (1, 2))
    assert_equal(first["a"], given.adapter["dense"]["a"])
    assert differs(first["b"], given.adapter["dense"]["b"])
    assert_equal(second["b"], first["b"])
    assert differs(second["a"], first["a"])


@pytest.mark.parametrize("name", ["flora", "fedex"])
def test_the_base_takes_up_what_the_mean_delta_lacks(name):
    algorithm, given, stacked = make(name), problem(COUNTS), uploads()
    server = algorithm.init(given.adapter, Size(4, 4))
    before = algorithm.rebase(given.shared.base, server)["w"]
    if name == "flora":
        of, kept = jnp.full(4, 2), jnp.full(4, 2)
        server = algorithm.aggregate(
            server, (ledger.Part(stacked, kept, of), {}), WEIGHTS
        )
        inner = 0
    else:
        server = algorithm.aggregate(server, stacked, WEIGHTS)
        inner = delta(server["adapter"])
    after = algorithm.rebase(given.shared.base, server)["w"] - before
    assert_close(after + SCALE * inner, SCALE * mean_delta(stacked), rtol=1e-4)


def test_the_announced_values_are_what_the_base_takes_up():
    given, stacked = problem(COUNTS), uploads()
    fedex = make("fedex")
    server = fedex.aggregate(fedex.init(given.adapter, Size(4, 4)), stacked, WEIGHTS)
    assert_announced(fedex.announce(server), server["deltas"]["dense"])
    flora = make("flora")
    part = ledger.Part(stacked, jnp.full(4, 2), jnp.full(4, 2))
    begin = flora.init(given.adapter, Size(4, 4))
    server = flora.aggregate(begin, (part, {}), WEIGHTS)
    change = server["deltas"]["dense"] - begin["deltas"]["dense"]
    assert_announced(flora.announce(server), change)


def assert_announced(payload, expected):
    """Both encodings of a delta are that delta."""
    factors_, dense = payload["dense"]
    for value in (algebra.delta(factors_.value), dense.value):
        assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_flora_learns_in_other_directions_than_those_of_one_a(monkeypatch):
    """The share of what the base learns that is outside the span of one `a`."""
    given, draw = problem(COUNTS), factors.drawn
    one = draw(given.adapter, jax.random.key(7))

    def outside():
        algorithm = make("flora")
        begin = start(algorithm, given).server["deltas"]["dense"]
        progress, _ = run(algorithm, given, number=6)
        learned = np.asarray(progress.server["deltas"]["dense"] - begin)
        basis, _ = np.linalg.qr(one["dense"]["a"])
        rest = learned - basis @ (basis.T @ learned)
        return np.linalg.norm(rest) / np.linalg.norm(learned)

    drawn = outside()
    monkeypatch.setattr(factors, "drawn", lambda adapter, key: one)
    assert outside() < 0.1 < 0.4 < drawn


def test_flora_restarts_from_its_round_and_client_alone():
    given, algorithm = problem(COUNTS), make("flora")
    references = []
    for client, number in ((0, 0), (0, 0), (1, 0), (0, 1)):
        shared = known(algorithm, given.shared, start(algorithm, given).server, number)
        examples = jax.tree.map(lambda x, c=client: x[c], given.examples)
        key = client_key(jax.random.key(0), client, number)
        args = shared, {}, jnp.int32(2), examples, key
        references.append(algorithm.client(*args).reference[0].value["dense"])
    first, same, *others = (x["a"].tobytes() for x in map(np_, references))
    assert first == same and first not in others and len(set(others)) == 2
    assert not any(np.any(x["b"]) for x in references)


def np_(tree):
    return jax.tree.map(np.asarray, tree)


def test_flexlora_is_exact_where_the_rank_suffices():
    stacked = uploads(clients=1)
    algorithm = make("flexlora")
    part = ledger.Part(stacked, jnp.full(1, 2), jnp.full(1, 2)), {}
    server = {"dense": {"a": jnp.zeros((5, 2)), "b": jnp.zeros((2, 3))}}
    found = algorithm.aggregate(server, part, jnp.ones(1))
    assert_close(delta(found), mean_delta(stacked, jnp.ones(1)), rtol=1e-4)


def test_flexlora_is_the_best_of_its_rank():
    stacked, algorithm = uploads(), make("flexlora")
    part = ledger.Part(stacked, jnp.full(4, 2), jnp.full(4, 2)), {}
    server = {"dense": {"a": jnp.zeros((5, 2)), "b": jnp.zeros((2, 3))}}
    found = delta(algorithm.aggregate(server, part, WEIGHTS))
    u, sigma, v = np.linalg.svd(mean_delta(stacked), full_matrices=False)
    assert_close(found, (u[:, :2] * sigma[:2]) @ v[:2], rtol=1e-4, atol=1e-5)


def test_hetlora_of_equal_ranks_and_norms_is_fedit():
    stacked = uploads()
    norms = jax.vmap(algebra.norm)(stacked["dense"])
    stacked["dense"]["b"] /= norms[:, None, None]
    part = ledger.Part(stacked, jnp.full(4, 2), jnp.full(4, 2)), {}
    found = make("hetlora").aggregate({}, part, jnp.full(4, 0.25))
    assert_close(found, FEDIT.aggregate({}, stacked, jnp.full(4, 0.25)))


def test_hetlora_weighs_by_the_norms_of_the_deltas():
    stacked = uploads()
    part = ledger.Part(stacked, jnp.full(4, 2), jnp.full(4, 2)), {}
    found = make("hetlora").aggregate({}, part, WEIGHTS)
    norms = [np.linalg.norm(x) for x in np.asarray(algebra.delta(stacked["dense"]))]
    expected = FEDIT.aggregate({}, stacked, jnp.array(norms) / sum(norms))
    assert_close(found, expected, rtol=1e-4)


def test_hetlora_gives_up_a_tail_that_shrinks():
    strong = make("hetlora", decay=0.5, penalty=10.0)
    before = start(strong, problem(COUNTS)).states
    after, report = run(strong, problem(COUNTS), number=2)
    np.testing.assert_array_equal(before, 2)
    assert np.any(np.asarray(after.states) == 1)
    assert report.bytes_up.min() < report.bytes_up.max() or np.all(after.states == 1)


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("number", [0, 1])
def test_fedrot_leaves_every_clients_delta_as_it_is(strength, number):
    given, wanted = problem((4,)), {}
    for how in (0.0, strength):
        algorithm = make("fedrot", strength=how)
        shared = given.shared._replace(round=jnp.int32(number))
        examples = jax.tree.map(lambda x: x[0], given.examples)
        update = algorithm.client(
            shared, given.adapter, (), examples, jax.random.key(0)
        )
        wanted[how] = update.upload["dense"]
    assert_close(algebra.delta(wanted[strength]), algebra.delta(wanted[0.0]), rtol=1e-4)
    assert differs(wanted[strength], wanted[0.0])


def test_lora_fair_closes_the_gap_to_the_mean_delta():
    stacked = uploads()
    plain = delta(FEDIT.aggregate({}, stacked, WEIGHTS))
    error = lambda found: np.linalg.norm(found - mean_delta(stacked))
    exact = make("lora_fair", distance="frobenius", penalty=1e-6)
    closed = exact.aggregate({}, stacked, WEIGHTS)
    a = np.asarray(closed["dense"]["a"], np.float64)
    best = a @ np.linalg.lstsq(a, mean_delta(stacked), rcond=None)[0]
    assert_close(delta(closed), best, rtol=1e-3, atol=1e-3)
    assert error(delta(closed)) < error(plain)


def test_lora_fair_cosine_turns_towards_the_mean_delta():
    stacked = uploads()
    cosine = lambda x: (x * mean_delta(stacked)).sum() / np.linalg.norm(x)
    how = {"distance": "cosine", "steps": 200, "learning_rate": 0.1, "penalty": 0.0}
    found = make("lora_fair", **how).aggregate({}, stacked, WEIGHTS)
    plain = FEDIT.aggregate({}, stacked, WEIGHTS)
    assert cosine(delta(found)) > 1.01 * cosine(delta(plain))


def test_robust_pca_finds_a_low_rank_and_a_sparse_part():
    from potara_jax.federated.algorithms.fedrpca import robust_pca

    rng = np.random.default_rng(0)
    low = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 20))
    sparse = np.where(rng.random((60, 20)) < 0.05, 10.0, 0.0)
    matrix = jnp.asarray(low + sparse, jnp.float32)
    found, rest = robust_pca(matrix, iterations=200, columns=20)
    assert np.abs(found - low).max() < 0.1
    assert np.abs(rest - sparse).max() < 0.1


def test_apfl_takes_both_steps_from_where_the_last_has_left_both():
    """Two steps on one example, by hand: `v` sees the `w` of the step before."""
    given, rate, alpha = problem((1,)), 0.1, 0.3
    two = Train(optax.sgd(rate), steps=2, batch_size=1)
    algorithm = make("apfl", alpha=alpha, learning_rate=0.0, train=two)
    progress, _ = run(algorithm, given)
    batch = jax.tree.map(lambda x: x[:1], given.shared.pool)
    slope = jax.grad(lambda x: task.objective(given.shared.base)(x, batch))
    step = lambda x, g: jax.tree.map(lambda x, g: x - rate * g, x, g)
    w = v = given.adapter
    for _ in range(2):
        mixed = factors.interpolate(v, w, alpha)
        chained = jax.tree.map(lambda g: alpha * g, slope(mixed))
        w, v = step(w, slope(w)), step(v, chained)
    assert_close(progress.server, w)
    assert_close(jax.tree.map(lambda x: x[0], progress.states["personal"]), v)


def test_apfl_moves_its_mixture_by_the_first_batch_of_a_round():
    given, algorithm = problem((4,)), make("apfl", learning_rate=0.5)
    before = run(algorithm, given, number=2)[0]
    after = run(algorithm, given, number=3)[0]
    own = jax.tree.map(lambda x: x[0], before.states["personal"])
    loss = task.objective(given.shared.base)
    mixture = lambda alpha: loss(
        factors.interpolate(own, before.server, alpha), given.shared.pool
    )
    alpha = before.states["alpha"][0]
    expected = alpha - 0.5 * jax.grad(mixture)(alpha)
    assert_close(after.states["alpha"][0], expected, rtol=1e-4)
    assert before.states["alpha"][0] != after.states["alpha"][0]


# --- The ledger -----------------------------------------------------------------------

P, A, B, DENSE = 4 * 16, 4 * 10, 4 * 6, 4 * 15  # of D, R, K = 5, 2, 3, in bytes


@pytest.mark.parametrize(
    ("name", "up", "down", "announced"),
    [
        ("local", 0, 0, 0),
        *((name, P, P, 0) for name in ("fedit", "fedprox", "fedrot", "lora_fair")),
        *((name, P, P, 0) for name in ("fedrpca", "ditto", "apfl", "pfedme")),
        *((name, P, P, 0) for name in ("fedala", "feddpa_t", "fdlora", "fedalt")),
        *((name, P, P, 0) for name in ("pf2lora", "flexlora")),
        *((name, P, P, 0) for name in ("fedavgm", "fedadam", "fedyogi")),
        ("ffa", B, B, 0),
        ("fedsa", A, A, 0),
        ("scaffold", 2 * P, 2 * P, 0),
        ("fedex", P, P, DENSE),  # smaller than factors of rank 6
        ("flora", P, 0, DENSE),  # smaller than factors of rank 8
    ],
)
def test_bytes_are_those_of_the_formulas(name, up, down, announced):
    _, report = run(make(name), problem(COUNTS), number=3)
    np.testing.assert_array_equal(report.bytes_up, up)
    np.testing.assert_array_equal(report.bytes_down, down)
    assert report.bytes_announced == announced


def test_hetlora_sends_the_rank_that_is_left():
    progress, report = run(make("hetlora"), problem(COUNTS), number=3)
    _, kept = run(make("hetlora", decay=1.0), problem(COUNTS), number=3)
    np.testing.assert_array_equal(kept.bytes_up, P)
    np.testing.assert_array_equal(report.bytes_up, P // 2 * progress.states)


def test_rolora_sends_its_factors_in_turn():
    for number, trained, heard in ((1, B, A), (2, A, B), (3, B, A)):
        _, report = run(make("rolora"), problem(COUNTS), number=number)
        np.testing.assert_array_equal(report.bytes_up, trained)
        assert report.bytes_announced == heard


@pytest.mark.parametrize("name", ["flexlora", "hetlora", "flora"])
def test_clients_send_the_bytes_of_their_own_ranks(name):
    algorithm = make(name, ranks=(2, 1))
    _, report = run(algorithm, problem(COUNTS))
    np.testing.assert_array_equal(report.bytes_up, [P, P // 2, P, P // 2])


@pytest.mark.parametrize("name", ["flexlora", "hetlora", "flora"])
def test_a_rank_that_does_not_fit_is_refused(name):
    with pytest.raises(ValueError, match="rank 3 of a client"):
        start(make(name, ranks=(3,)), problem(COUNTS))


def test_beyond_its_rank_a_client_stays_at_zero():
    given = problem(COUNTS)
    algorithm = make("flexlora", ranks=(1,))
    adamw = dataclasses.replace(train, optimizer=optax.adamw(0.05))
    algorithm = make("flexlora", ranks=(1,), train=adamw)
    model = models(algorithm, given, run(algorithm, given, number=2)[0])
    assert np.all(model["dense"]["a"][..., 1:] == 0)
    assert np.linalg.matrix_rank(delta(jax.tree.map(lambda x: x[0], model))) == 1


def test_mix_and_add_are_exact():
    first, second = (
        {"dense": jax.tree.map(lambda x: x[0], uploads(s)["dense"])} for s in (0, 1)
    )
    mixed = factors.mix(first, second, 0.3)
    assert_close(delta(mixed), 0.3 * delta(first) + 0.7 * delta(second), rtol=1e-4)
    both = factors.add(first, second)
    assert_close(delta(both), delta(first) + delta(second), rtol=1e-4)
