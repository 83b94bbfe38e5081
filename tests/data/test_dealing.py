import jax
import jax.numpy as jnp
import numpy as np
import pytest

from potara_jax.data import dealing
from potara_jax.data.federation import Batch

STRATA = np.repeat(np.arange(6), 40)
POOL = Batch(jnp.arange(240.0)[:, None], jnp.asarray(STRATA))


def deal(heterogeneity, clients, seed=0, minimum=8):
    rng = np.random.default_rng(seed)
    return dealing.deal(rng, STRATA, heterogeneity, clients=clients, minimum=minimum)


@pytest.mark.parametrize("heterogeneity", ["tasks", "shards2", "shards3", "0.5"])
def test_all_examples_are_dealt_once(heterogeneity):
    groups = deal(heterogeneity, 6)
    assert sorted(np.concatenate(groups)) == list(range(len(STRATA)))


@pytest.mark.parametrize(("heterogeneity", "number"), [("tasks", 1), ("shards2", 2)])
def test_a_client_holds_a_number_of_strata_in_turn(heterogeneity, number):
    groups = deal(heterogeneity, 12)
    for client, group in enumerate(groups):
        held = sorted({number * client % 6 + i for i in range(number)})
        assert sorted(set(STRATA[group])) == held


def test_clients_of_one_task_share_it_evenly():
    assert {len(group) for group in deal("tasks", 12)} == {20}


def test_too_many_clients_are_refused():
    with pytest.raises(ValueError, match="fewer than 8; take fewer clients"):
        deal("tasks", 48)


PARTS = dealing.Parts(
    train=np.flatnonzero(np.arange(240) % 4 > 1),
    heldout=np.arange(0, 240, 4),
    test=np.arange(1, 240, 4),
)


def federation(heterogeneity="tasks", clients=6, **options):
    rng = np.random.default_rng(0)
    groups = dealing.deal(rng, STRATA[PARTS.train], heterogeneity, clients=clients)
    groups = [PARTS.train[group] for group in groups]
    return dealing.federate(rng, POOL, STRATA, PARTS, groups, heldout=10, **options)


def test_a_client_of_one_task_is_measured_and_tested_only_on_it():
    drawn = federation()
    for client in range(6):
        count = int(drawn.heldout.count[client])
        assert set(STRATA[drawn.heldout.index[client, :count]]) == {client}
        real = np.asarray(drawn.test.weight[client]) > 0
        assert set(STRATA[drawn.test.index[client][real]]) == {client}
    np.testing.assert_allclose(drawn.test.weight.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(drawn.task, range(6))


def test_test_examples_can_be_drawn_in_the_clients_proportions():
    drawn = federation("shards2", test=8)
    assert drawn.test.index.shape == (6, 8)
    for index, weight in zip(drawn.test.index, drawn.test.weight, strict=True):
        counts = np.bincount(STRATA[np.asarray(index)[np.asarray(weight) > 0]])
        assert counts[counts > 0].tolist() == [4, 4]


def test_parts_are_disjoint():
    drawn = federation("0.5", test=8)
    used = {
        name: set(np.asarray(getattr(drawn, name).index).ravel().tolist())
        for name in ("train", "heldout", "test")
    }
    assert not used["heldout"] & used["test"]
    train = [
        set(np.asarray(row[:count]).tolist())
        for row, count in zip(drawn.train.index, drawn.train.count, strict=True)
    ]
    assert not set().union(*train) & (used["heldout"] | used["test"])


def test_a_client_of_many_strata_still_has_every_part():
    strata, owner = np.arange(20) % 10, np.repeat([0, 1], 10)
    pool = Batch(jnp.arange(20.0)[:, None], jnp.asarray(strata))
    drawn = dealing.natural(pool, owner, strata, 0, heldout=4, test=4)
    assert drawn.train.count.tolist() == [6, 6]
    assert drawn.heldout.count.tolist() == [2, 2]
    assert (np.asarray(drawn.test.weight) > 0).sum(1).tolist() == [2, 2]


def test_natural_clients_have_only_their_examples():
    owner = np.arange(240) % 3
    drawn = dealing.natural(POOL, owner, STRATA, 1, heldout=10, test=12)
    for client in range(3):
        parts = [
            np.asarray(drawn.train.index[client, : drawn.train.count[client]]),
            np.asarray(drawn.heldout.index[client, : drawn.heldout.count[client]]),
            np.asarray(drawn.test.index[client])[drawn.test.weight[client] > 0],
        ]
        index = np.concatenate(parts)
        assert set(owner[index]) == {client}
        assert len(set(index.tolist())) == len(index)
    np.testing.assert_array_equal(drawn.task, range(3))


def test_examples_reserved_for_tests_are_the_tests():
    testing = np.arange(240) % 5 == 0
    parts = dealing.split(np.random.default_rng(0), STRATA, testing=testing)
    np.testing.assert_array_equal(parts.test, np.flatnonzero(testing))
    assert sorted(np.concatenate(parts)) == list(range(240))
    drawn = dealing.dealt(
        POOL, STRATA, "0.5", 3, clients=4, heldout=5, test=6, testing=testing
    )
    tested = np.asarray(drawn.test.index)[np.asarray(drawn.test.weight) > 0]
    assert testing[tested].all()


def used(federation):
    """What clients train and measure on, and what they are tested on."""
    parts = [
        set(np.asarray(row[:count]).tolist())
        for part in (federation.train, federation.heldout)
        for row, count in zip(part.index, part.count, strict=True)
    ]
    tested = np.asarray(federation.test.index)[np.asarray(federation.test.weight) > 0]
    return set().union(*parts), set(tested.tolist())


@pytest.mark.parametrize("kind", ["dealt", "natural"])
def test_a_seed_apart_from_others_trains_and_measures_on_none_of_their_tests(kind):
    def make(seed, apart=()):
        if kind == "dealt":
            more = {"clients": 4, "heldout": 5, "test": 6, "apart": apart}
            return dealing.dealt(POOL, STRATA, "0.5", seed, **more)
        owner, more = np.arange(240) % 3, {"heldout": 9, "test": 12, "apart": apart}
        return dealing.natural(POOL, owner, STRATA, seed, **more)

    tested = set().union(*(used(make(seed))[1] for seed in (0, 1, 2)))
    plain, _ = used(make(100))
    alone, _ = used(make(100, apart=(0, 1, 2)))
    assert plain & tested
    assert not alone & tested
    assert len(alone) > 40


def test_a_client_whose_examples_are_all_tests_of_others_is_refused():
    owner, strata = np.repeat([0, 1], [236, 4]), np.zeros(240, int)
    how = {"heldout": 9, "test": 12, "apart": tuple(range(60))}
    with pytest.raises(ValueError, match=r"apart from the tests of cells\.apart_from"):
        dealing.natural(POOL, owner, strata, 100, **how)


def test_clients_of_other_blocks_have_the_same_examples_in_theirs():
    plain, moved = federation(), federation(blocks=np.array([0, 240] * 3))
    for name in ("train", "heldout"):
        before, after = getattr(plain, name), getattr(moved, name)
        for client, count in enumerate(before.count):
            shift = np.asarray(after.index - before.index)[client, :count]
            assert set(shift.tolist()) == {240 * (client % 2)}
    shift = np.asarray(moved.test.index - plain.test.index)
    assert (shift == 240 * (np.arange(6) % 2)[:, None]).all()


def test_a_test_that_is_not_compact_has_all_examples_for_everyone():
    compact, common = federation(), federation(compact=False)
    assert common.test.index.shape == (6, len(PARTS.test))
    for client in range(6):
        counted = np.asarray(common.test.weight[client]) > 0
        index = np.asarray(common.test.index[client])[counted]
        kept = np.asarray(compact.test.weight[client]) > 0
        expected = np.asarray(compact.test.index[client])[kept]
        np.testing.assert_array_equal(index, expected)


# --- Copies --------------------------------------------------------------------------


def test_copies_are_in_one_part_of_a_split():
    strata, same = np.arange(200) % 4, np.arange(200) // 2 % 60
    parts = dealing.split(np.random.default_rng(0), strata, same=same)
    joined = np.sort(np.concatenate(parts))
    np.testing.assert_array_equal(joined, np.arange(200))
    groups = [{*same[part]} for part in parts]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    testing = np.arange(200) < 30
    parts = dealing.split(np.random.default_rng(0), strata, testing=testing, same=same)
    assert {*same[parts.test]} == {*same[testing]}
    assert not {*same[parts.train]} & {*same[testing]}


@pytest.mark.parametrize("apart", [(), (7,)])
def test_without_copies_a_split_is_the_usual_one(apart):
    strata, split = np.arange(100) % 3, dealing.split
    numbers = np.arange(100)[::-1] * 5
    usual = split(np.random.default_rng(3), strata, apart=apart)
    apiece = split(np.random.default_rng(3), strata, apart=apart, same=numbers)
    jax.tree.map(np.testing.assert_array_equal, apiece, usual)


def test_no_client_trains_on_a_copy_of_what_any_is_tested_on():
    owner, strata = np.repeat(np.arange(3), 60), np.arange(180) % 2
    same = np.random.default_rng(0).integers(0, 120, 180)
    pool = Batch(jnp.zeros((180, 1)), jnp.asarray(strata))
    made = dealing.natural(pool, owner, strata, 0, heldout=9, test=8, same=same)
    tested = {*same[np.asarray(made.test.index)].ravel()}
    for part in (made.train, made.heldout):
        for index, count in zip(part.index, part.count, strict=True):
            assert count > 0 and not tested & {*same[np.asarray(index[:count])]}
    usual = dealing.natural(pool, owner, strata, 0, heldout=9, test=8)
    np.testing.assert_array_equal(made.test.index, usual.test.index)
    with pytest.raises(ValueError, match="client 0 has only examples that clients are"):
        dealing.natural(pool, owner, strata, 0, heldout=9, test=8, same=0 * same)


def test_a_client_whose_stratum_has_too_few_examples_is_named():
    strata = np.repeat([0, 1], [100, 40])
    same = np.where(strata == 1, 1000, np.arange(140))
    pool = Batch(jnp.zeros((140, 1)), jnp.asarray(strata))
    with pytest.raises(
        ValueError, match=r"client [01] .*(held-out|test|training) exam"
    ):
        dealing.dealt(pool, strata, "tasks", 0, clients=2, heldout=5, test=5, same=same)
