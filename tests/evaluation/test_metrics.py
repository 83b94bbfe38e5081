import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potara_jax.clients.axis import Layout
from potara_jax.clients.task import of_loss
from potara_jax.data.federation import Weighted
from potara_jax.evaluation import metrics
from tests.helpers_federated import (
    SCALE,
    assert_close,
    few_examples,
    linear,
    problem,
    task,
)

CLIENTS, TESTS = 5, 7


def weighted_test(seed=0):
    rng = np.random.default_rng(seed)
    index = rng.integers(0, 20, (CLIENTS, TESTS))
    weight = rng.dirichlet(np.ones(TESTS), CLIENTS)
    return Weighted(jnp.asarray(index), jnp.asarray(weight, jnp.float32))


def adapters(seed=0):
    rng = np.random.default_rng(seed)
    stacked = lambda x: jnp.asarray(rng.normal(size=(CLIENTS, *x.shape)), x.dtype)
    return jax.tree.map(stacked, problem().adapter)


def numpy_scores(shared, stacked, test):
    inputs, labels = map(np.asarray, shared.pool[:2])
    w = np.asarray(shared.base["w"], np.float64)
    accuracy, loss = [], []
    for client in range(CLIENTS):
        a, b = (np.asarray(stacked["dense"][name][client]) for name in "ab")
        index, weight = (np.asarray(part[client], part.dtype) for part in test)
        logits = inputs[index] @ (w + SCALE * a @ b)
        right = labels[index]
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(TESTS), right]
        accuracy.append(np.sum(weight * (logits.argmax(1) == right)))
        loss.append(np.sum(weight * losses))
    return np.array(accuracy), np.array(loss)


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_evaluator_equals_numpy(chunk):
    shared = problem((20,)).shared
    scores = metrics.evaluator(task, layout=Layout(chunk))(
        shared, adapters(), weighted_test()
    )
    accuracy, loss = numpy_scores(shared, adapters(), weighted_test())
    np.testing.assert_allclose(scores.accuracy, accuracy, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores.loss, loss, rtol=1e-5)
    assert len(np.unique(accuracy)) == CLIENTS


def test_a_model_that_is_not_finite_has_no_accuracy():
    """The largest of logits that are all NaN is the first."""
    shared, stacked = problem((20,)).shared, adapters()
    b = stacked["dense"]["b"].at[1].set(jnp.nan).at[3, 0, 0].set(jnp.inf)
    broken = {"dense": stacked["dense"] | {"b": b}}
    evaluate = metrics.evaluator(task)
    expected, found = (
        evaluate(shared, each, weighted_test()) for each in (stacked, broken)
    )
    assert np.isnan(found.accuracy).tolist() == [False, True, False, True, False]
    assert np.isnan(found.balanced).tolist() == [False, True, False, True, False]
    np.testing.assert_array_equal(found.accuracy[::2], expected.accuracy[::2])
    assert np.isnan(metrics.worst_decile(found.accuracy))


def test_a_task_with_only_a_loss_scores_minus_the_loss():
    squares = lambda apply, batch: (apply(batch.inputs) ** 2).sum(-1)
    squared, given, test = of_loss(linear, squares), problem((20,)), weighted_test()
    scores = metrics.evaluator(squared)(given.shared, adapters(), test)
    np.testing.assert_array_equal(scores.accuracy, -scores.loss)
    for client in range(CLIENTS):
        adapter = jax.tree.map(lambda x, c=client: x[c], adapters())
        losses = squared.loss(given.shared.base, adapter, given.shared.pool)
        expected = (losses[test.index[client]] * test.weight[client]).sum()
        np.testing.assert_allclose(scores.loss[client], expected, rtol=1e-5)
    common = metrics.common_evaluator(squared)(given.shared, given.adapter, test)
    np.testing.assert_array_equal(common.accuracy, -common.loss)
    assert len(np.unique(common.loss)) == CLIENTS


def test_classes_of_equal_shares_by_hand():
    """Class 4 is right by a third, class 2 wholly, class 7 is not the client's."""
    labels = jnp.asarray([4, 2, 4, 7, 4])
    weight = jnp.asarray([0.1, 0.7, 0.1, 0.0, 0.1])
    equal = jax.jit(metrics.equal_shares)(labels, weight)
    np.testing.assert_allclose(equal, [1 / 6, 1 / 2, 1 / 6, 0, 1 / 6], rtol=1e-6)
    uneven = metrics.equal_shares(jnp.asarray([1, 1, 0]), jnp.asarray([0.2, 0.6, 0.2]))
    np.testing.assert_allclose(uneven, [1 / 8, 3 / 8, 1 / 2], rtol=1e-6)


def test_balanced_accuracy_is_the_mean_over_classes_of_the_accuracy_on_each():
    shared, test = problem((20,)).shared, weighted_test()
    scores = metrics.evaluator(task)(shared, adapters(), test)
    for client in range(CLIENTS):
        adapter = jax.tree.map(lambda x, c=client: x[c], adapters())
        batch = jax.tree.map(lambda x, c=client: x[test.index[c]], shared.pool)
        right = np.asarray(task.measure(shared.base, adapter, batch)[1], np.float64)
        labels, weight = np.asarray(batch.labels), np.asarray(test.weight[client])
        by_class = [
            np.average(right[labels == k], weights=weight[labels == k])
            for k in np.unique(labels)
        ]
        np.testing.assert_allclose(scores.balanced[client], np.mean(by_class), 1e-5)
    assert not np.allclose(scores.balanced, scores.accuracy)


def test_labels_that_are_no_classes_have_no_second_score():
    given = problem((4, 4))
    sequences = task._replace(sequences=True)
    squared = of_loss(linear, lambda apply, batch: (apply(batch.inputs) ** 2).sum(-1))
    measured = given.shared.pool._replace(labels=jnp.ones(8))
    assert metrics.has_classes(task, given.shared.pool)
    for other, pool in [
        (sequences, given.shared.pool),
        (squared, given.shared.pool),
        (task, measured),
    ]:
        assert not metrics.has_classes(other, pool)
    test = Weighted(jnp.arange(8).reshape(2, 4), jnp.full((2, 4), 0.25))
    evaluate = metrics.common_evaluator(squared)
    assert evaluate(given.shared, given.adapter, test).balanced is None


def test_common_evaluator_equals_the_evaluator_of_one_adapter_for_all():
    federation, test = problem((20,)), weighted_test()
    repeat = lambda x: jnp.stack([x] * CLIENTS)
    same = jax.tree.map(repeat, federation.adapter)
    scores = metrics.evaluator(task)(federation.shared, same, test)
    evaluate = metrics.common_evaluator(task)
    common = evaluate(federation.shared, federation.adapter, test)
    assert_close(common, scores)
    assert len(np.unique(common.loss)) == CLIENTS


def test_common_evaluator_computes_every_distinct_example_once():
    seen = []

    def judge(base, adapter, batch):
        seen.append(batch.labels.shape[0])
        return task.judge(base, adapter, batch)

    federation, test = problem((20,)), weighted_test()
    evaluate = metrics.common_evaluator(task._replace(judge=judge))
    evaluate(federation.shared, federation.adapter, test)
    assert seen == [len(np.unique(test.index))]
    assert seen[0] < CLIENTS * TESTS


def test_examples_without_weight_do_not_count():
    shared, test = problem((20,)).shared, weighted_test()
    weight = np.zeros((CLIENTS, TESTS), np.float32)
    weight[:, 3] = 1
    test = test._replace(weight=jnp.asarray(weight))
    scores = metrics.evaluator(task)(shared, adapters(), test)
    assert set(np.asarray(scores.accuracy).tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("values", "worst"),
    [
        ([0.5, 0.1, 0.9], 0.1),
        ([0.7], 0.7),
        (np.arange(10, 0, -1), 1.0),
        (np.arange(19), 0.0),
        (np.arange(20)[::-1], 0.5),
        (np.arange(35), 1.0),
    ],
)
def test_worst_decile_by_hand(values, worst):
    assert metrics.worst_decile(values) == worst


@few_examples
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.randoms())
def test_worst_decile_is_the_same_for_any_order_and_at_most_the_mean(values, random):
    worst = metrics.worst_decile(values)
    random.shuffle(values)
    assert metrics.worst_decile(values) == worst
    assert min(values) <= worst <= np.mean(values) + 1e-12


def test_adapter_parameters_are_those_of_one_client():
    stacked = {
        "query": {"a": jnp.zeros((9, 5, 2)), "b": jnp.zeros((9, 2, 3))},
        "head": {"kernel": jnp.zeros((9, 3, 4)), "bias": jnp.zeros((9, 4))},
    }
    assert metrics.adapter_parameters(stacked) == 10 + 6 + 12 + 4
    assert metrics.adapter_parameters({}) == 0


def test_segment_barrier_by_hand():
    losses = jnp.array(
        [
            [1.0, 2.5, 3.0],  # 0.5 above the line from 1 to 3
            [1.0, 1.5, 3.0],  # below the line
            [2.0, 2.0, 0.0],  # 1 above the line from 2 to 0
            [4.0, 4.0, 4.0],
        ]
    )
    barrier = metrics.segment_barrier(losses, jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(barrier, [0.5, 0, 1, 0])


def test_segment_barrier_is_the_highest_over_points_that_need_not_be_even():
    losses = jnp.array([[0.0, 1.0, 4.0, 4.0]])
    points = jnp.array([0.0, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(metrics.segment_barrier(losses, points), [2.0])


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_the_number_of_examples_at_once_changes_nothing(monkeypatch, limit):
    shared = problem((4, 4, 4, 8)).shared
    adapter, test = adapters(), weighted_test()
    whole = metrics.evaluator(task)(shared, adapter, test)
    first = jax.tree.map(lambda x: x[0], adapter)
    common = metrics.common_evaluator(task)(shared, first, test)
    monkeypatch.setattr(metrics, "_MAX_EXAMPLES", limit)
    assert_close(metrics.evaluator(task)(shared, adapter, test), whole)
    assert_close(metrics.common_evaluator(task)(shared, first, test), common)


LENGTHS = np.array([1, 3, 7, 2, 6])


def ragged_test():
    """A test whose clients have different numbers of examples, with a gap in one."""
    test = weighted_test()
    weight = np.where(np.arange(TESTS) < LENGTHS[:, None], test.weight, 0)
    weight[2, 3] = 0
    weight = weight / weight.sum(1, keepdims=True)
    return test._replace(weight=jnp.asarray(weight, jnp.float32))


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_tests_of_different_lengths_equal_numpy(monkeypatch, chunk):
    """One model is not finite, which makes no other's scores NaN."""
    shared, stacked = problem((20,)).shared, adapters()
    b = stacked["dense"]["b"].at[1].set(jnp.nan)
    broken = {"dense": stacked["dense"] | {"b": b}}
    whole = metrics.evaluator(task)(shared, broken, ragged_test())
    monkeypatch.setattr(metrics, "_MAX_EXAMPLES", 2)
    evaluate = metrics.evaluator(task, layout=Layout(chunk))
    scores = evaluate(shared, broken, ragged_test())
    accuracy, loss = numpy_scores(shared, stacked, ragged_test())
    for found in (whole, scores):
        assert np.isnan(found.accuracy).tolist() == [False, True, False, False, False]
    fine = np.arange(CLIENTS) != 1
    np.testing.assert_allclose(scores.accuracy[fine], accuracy[fine], 1e-5, 1e-6)
    np.testing.assert_allclose(scores.loss[fine], loss[fine], rtol=1e-5)
    np.testing.assert_allclose(scores.balanced[fine], whole.balanced[fine], 1e-5, 1e-6)


def test_parts_of_a_test_that_no_client_needs_are_not_computed(monkeypatch):
    monkeypatch.setattr(metrics, "_MAX_EXAMPLES", 2)
    computed = []

    def judge(base, adapter, batch):
        jax.debug.callback(lambda: computed.append(len(batch.labels)))
        return task.judge(base, adapter, batch)

    evaluate = metrics.evaluator(task._replace(judge=judge), layout=Layout(1))
    evaluate(problem((20,)).shared, adapters(), ragged_test())
    jax.effects_barrier()
    assert computed == [2] * sum(-(-LENGTHS // 2))
