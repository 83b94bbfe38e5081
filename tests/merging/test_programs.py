from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend.core import jaxprs_in_params

from potara_jax import merging
from potara_jax.adapters import lora
from potara_jax.clients.axis import AT_ONCE, Layout
from potara_jax.merging import (
    Client,
    Samples,
    loss_curves,
    personalise,
    programs,
    registry,
    spaces,
)
from potara_jax.merging.curvature import curvature, real
from potara_jax.merging.segment import segment_loss
from tests.helpers import assert_close, dense, gauge, normal, pick, regauged, stack

CLIENTS, SAMPLES, INPUTS = 3, 5, 6
DAMPING = merging.laplace(1.0)
KEY = jax.random.key(3)
TRAINED_ON = jnp.array([10.0, 20.0, 30.0])


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(5, name="body")(x))
        return nn.Dense(3, name="head")(x)


class Batch(NamedTuple):
    inputs: jax.Array
    labels: jax.Array


class Problem(NamedTuple):
    base: dict
    federated: dict
    local: dict
    samples: Samples


def random_like(tree, rng):
    return jax.tree.map(lambda x: 0.7 * normal(rng, x.shape), tree)


def problem():
    rng = np.random.default_rng(0)
    x = jax.ShapeDtypeStruct((1, INPUTS), jnp.float32)
    base = random_like(jax.eval_shape(Model().init, KEY, x)["params"], rng)
    sites = lora.find_sites(Model(), x, targets=["body"])
    adapter = jax.eval_shape(lambda: lora.init(KEY, sites, rank=2))
    adapter |= jax.eval_shape(lambda: lora.trained_modules(base, ["head"]))
    draw = lambda: stack([random_like(adapter, rng) for _ in range(CLIENTS)])
    labels = jnp.asarray(rng.integers(3, size=(CLIENTS, SAMPLES)), jnp.int32)
    examples = Batch(normal(rng, (CLIENTS, SAMPLES, INPUTS)), labels)
    return Problem(base, draw(), draw(), Samples(examples, jnp.array([5, 3, 4])))


PROBLEM = problem()


def logits(base, adapter, example):
    return lora.bind(Model(), scale=0.5)(base, adapter, example.inputs)


def loss(base, adapter, batch):
    log_p = jax.nn.log_softmax(logits(base, adapter, batch))
    return -jnp.take_along_axis(log_p, batch.labels[:, None], 1)[:, 0]


EXACT, SAMPLED = merging.exact(logits), merging.sampled(logits)


def potara(likelihood=EXACT, *, rank=None, layout=AT_ONCE, **options):
    """Curvature and merge in one space."""
    estimator = merging.potara(likelihood, DAMPING, **options)
    space = options.get("space", "core")
    return personalise(estimator, space=space, rank=rank, layout=layout)


def hermite_program(**options):
    return personalise(merging.hermite(loss), space="delta", **options)


@partial(jax.jit, static_argnames=("likelihood", "settings"))
def compiled(likelihood, settings, *args):
    return potara(likelihood, **dict(settings))(*args)


DEFAULTS = {"space": "core", "per": "client", "rank": None}


def merged(likelihood=EXACT, problem=PROBLEM, trained_on=TRAINED_ON, **settings):
    """Potara's result; one compilation for the same settings."""
    changed = tuple(sorted(settings.items() - DEFAULTS.items()))
    return compiled(likelihood, changed, *problem, trained_on, KEY)


def deltas(adapter):
    return {p: dense(e) if lora.is_factors(e) else e for p, e in adapter.items()}


def weighed(name, samples):
    estimator = registry.weights()[name].build(
        loss=loss, logits=logits, likelihood=EXACT
    )
    arguments = PROBLEM._replace(samples=samples)
    return merging.weigh(estimator)(*arguments, TRAINED_ON, KEY).weight


@pytest.mark.parametrize("name", registry.weights())
def test_a_sample_that_is_not_finite_is_left_out_of_every_weight(name):
    examples, count = PROBLEM.samples
    inputs = examples.inputs.at[0, 4, 2].set(jnp.nan)
    broken = Samples(examples._replace(inputs=inputs), count)
    fewer = Samples(examples, count.at[0].set(4))
    assert_close(weighed(name, broken), weighed(name, fewer), atol=1e-5)


LOOK_AT_LOSSES = [
    name
    for name, entry in registry.weights().items()
    if entry.needs in ("loss", "logits") and entry.bounded
]


@pytest.mark.parametrize("name", LOOK_AT_LOSSES)
def test_without_any_sample_a_weight_that_looks_at_losses_is_a_half(name):
    none = Samples(PROBLEM.samples.examples, jnp.zeros(CLIENTS, jnp.int32))
    for weight in jax.tree.leaves(weighed(name, none)):
        np.testing.assert_allclose(weight, 0.5, atol=1e-6)


# --- The program ---------------------------------------------------------------------


@partial(jax.jit, static_argnames=("likelihood", "space", "per", "rank"))
def by_hand(
    client, federated, local, samples, trained_on, likelihood, space, per, rank
):
    """Curvature, weight and merge of one client."""
    base = PROBLEM.base
    coordinates = spaces.SPACES[space].coordinates((federated, local))
    measured = curvature(
        lambda t, example, key: likelihood(base, coordinates.assemble(t), example, key),
        *coordinates.thetas,
        samples.examples,
        real(*samples),
        jax.random.fold_in(KEY, client),
    )
    weight = merging.potara_weight(measured, DAMPING, trained_on, per=per)
    both, pair = (federated, local), merging.pair(weight)
    return weight, merging.merge(both, pair, space=space, rank=rank)


@pytest.mark.parametrize(
    ("likelihood", "space", "per", "rank"),
    [
        (EXACT, "core", "client", None),
        (EXACT, "core", "parameter", 2),
        (SAMPLED, "factor", "module", None),
    ],
    ids=["exact-core-client", "exact-core-parameter", "sampled-factor-module"],
)
def test_the_program_does_every_client_on_its_own(likelihood, space, per, rank):
    actual = merged(likelihood, space=space, per=per, rank=rank)
    for client in range(CLIENTS):
        arguments = pick((*PROBLEM[1:], TRAINED_ON), client)
        weight, adapter = by_hand(client, *arguments, likelihood, space, per, rank)
        assert_close(pick(actual.weight, client), weight, atol=1e-3)
        assert_close(deltas(pick(actual.adapter, client)), deltas(adapter), atol=1e-3)


def test_every_client_has_its_own_weight():
    weight = merged().weight
    assert weight.shape == (CLIENTS,)
    assert np.all((weight > 0) & (weight < 1))
    assert np.ptp(weight) > 1e-2


def test_the_adapter_is_the_merge_at_the_weight():
    actual = merged()
    for client in range(CLIENTS):
        w = float(actual.weight[client])
        ends = (deltas(pick(t, client)) for t in (PROBLEM.federated, PROBLEM.local))
        mixed = jax.tree.map(lambda f, other, w=w: w * f + (1 - w) * other, *ends)
        assert_close(deltas(pick(actual.adapter, client)), mixed)


@pytest.mark.parametrize("space", ["core", "factor"])
def test_identical_models_take_a_half_each(space):
    same = PROBLEM._replace(local=PROBLEM.federated)
    actual = merged(problem=same, space=space)
    np.testing.assert_allclose(actual.weight, 0.5, atol=1e-3)
    assert_close(deltas(actual.adapter), deltas(PROBLEM.federated), atol=1e-4)


def test_working_in_pieces_changes_nothing():
    actual, expected = merged(layout=Layout(2), chunk=2), merged()
    assert_close(actual.weight, expected.weight, atol=1e-4)
    assert_close(deltas(actual.adapter), deltas(expected.adapter), atol=1e-4)


def scans(jaxpr, depth=1):
    """Every `lax.scan` of a program: how deep it lies in others, and its length."""
    for equation in jaxpr.eqns:
        is_scan = equation.primitive.name == "scan"
        if is_scan:
            yield depth, equation.params["length"]
        for inner in jaxprs_in_params(equation.params):
            yield from scans(inner, depth + is_scan)


def scans_of(program, *args):
    return list(scans(jax.make_jaxpr(program)(*PROBLEM, *args).jaxpr))


@pytest.mark.parametrize(
    ("make", "args"),
    [
        (partial(potara, space="factor"), (TRAINED_ON, KEY)),
        (hermite_program, (TRAINED_ON, KEY)),
        (partial(loss_curves, loss), (jnp.zeros(2),)),
    ],
    ids=["potara", "hermite", "loss_curves"],
)
def test_clients_at_once_are_scanned_around_everything_else(make, args):
    deepest = lambda program: max((d for d, _ in scans_of(program, *args)), default=0)
    assert deepest(make(layout=Layout(2))) == deepest(make()) + 1


@pytest.mark.parametrize(("chunk", "length"), [(1, 5), (2, 3), (8, 1)])
def test_samples_are_scanned_a_chunk_at_a_time(chunk, length):
    program = potara(space="factor", chunk=chunk)
    assert scans_of(program, TRAINED_ON, KEY) == [(1, length)]


def test_padding_changes_nothing():
    examples = PROBLEM.samples.examples
    padded = lambda x: x.at[1, 3:].set(x[0, :2]).at[2, 4:].set(x[0, 0])
    samples = Samples(jax.tree.map(padded, examples), PROBLEM.samples.count)
    actual = merged(problem=PROBLEM._replace(samples=samples))
    np.testing.assert_array_equal(actual.weight, merged().weight)


def test_laplace_sees_how_many_examples_a_client_trained_on():
    actual, more = merged().weight, merged(trained_on=100 * TRAINED_ON).weight
    assert np.abs(actual - more).min() > 1e-3


def test_repeated_calls_compile_once_and_move_nothing():
    traces = []

    def likelihood(*args):
        traces.append(args)
        return EXACT(*args)

    program = potara(likelihood)
    args = jax.device_put((*PROBLEM, TRAINED_ON))
    first, second = jax.random.split(KEY)
    with jax.transfer_guard("disallow"):
        program(*args, first)
        once = len(traces)
        program(*args, second)
    assert len(traces) == once > 0


# --- The gauge -----------------------------------------------------------------------


def local_in_another_gauge(matrix):
    adapters = [pick(PROBLEM.local, client) for client in range(CLIENTS)]
    return stack(
        {p: regauged(e, matrix) if lora.is_factors(e) else e for p, e in a.items()}
        for a in adapters
    )


GAUGES = {
    "rescaled": 5 * np.eye(2),
    "rotated": np.array([[0.6, -0.8], [0.8, 0.6]]),
    "mixed": gauge(0),
}
each_gauge = pytest.mark.parametrize("matrix", GAUGES.values(), ids=GAUGES.keys())


@each_gauge
def test_the_core_weight_does_not_see_the_gauge(matrix):
    other = PROBLEM._replace(local=local_in_another_gauge(matrix))
    actual, expected = merged(problem=other), merged()
    assert_close(actual.weight, expected.weight, atol=1e-3)
    assert_close(actual.curvature, expected.curvature, atol=2e-3)


@each_gauge
def test_the_core_merge_does_not_see_the_gauge(matrix):
    other = PROBLEM._replace(local=local_in_another_gauge(matrix))
    actual, expected = (deltas(m.adapter) for m in (merged(problem=other), merged()))
    assert_close(actual, expected, atol=2e-3)


@each_gauge
def test_the_factor_weight_sees_the_gauge(matrix):
    other = PROBLEM._replace(local=local_in_another_gauge(matrix))
    actual, expected = (
        merged(problem=p, space="factor").weight for p in (other, PROBLEM)
    )
    assert np.abs(actual - expected).max() > 1e-2


# --- The loss along the segment ------------------------------------------------------


losses = jax.jit(partial(loss, PROBLEM.base))


def client_loss(client, adapter):
    """The mean loss on a client's real samples, by hand."""
    examples, count = pick(PROBLEM.samples, client)
    return float(np.mean(losses(adapter, examples)[: int(count)]))


@jax.jit
def loss_at(federated, local, samples, weight):
    real_ones = real(*samples)
    client = Client(
        PROBLEM.base, federated, local, samples.examples, real_ones, None, None
    )
    return segment_loss(loss, client)(weight)


def client_segment(client):
    return partial(loss_at, *pick(PROBLEM[1:], client))


@pytest.mark.parametrize("client", range(CLIENTS))
def test_the_segments_ends_are_the_parents_losses(client):
    at = client_segment(client)
    for weight, parent in ((1.0, PROBLEM.federated), (0.0, PROBLEM.local)):
        expected = client_loss(client, pick(parent, client))
        assert float(at(weight)) == pytest.approx(expected, rel=1e-4)


def test_a_client_without_samples_has_no_loss():
    federated, local, samples = pick(PROBLEM[1:], 0)
    empty = samples._replace(count=jnp.int32(0))
    assert float(loss_at(federated, local, empty, 0.5)) == 0


@pytest.fixture(scope="module")
def hermite():
    return hermite_program()(*PROBLEM, TRAINED_ON, KEY)


@pytest.mark.parametrize("client", range(CLIENTS))
def test_the_hermite_weight_minimises_the_cubic(hermite, client):
    at, w = client_segment(client), float(hermite.weight[client])
    ends = [jax.jvp(at, (end,), (1.0,)) for end in (0.0, 1.0)]
    (y0, d0), (y1, d1) = ((float(y), float(d)) for y, d in ends)
    fit = np.polynomial.Polynomial(
        [y0, d0, 3 * (y1 - y0) - 2 * d0 - d1, d0 + d1 - 2 * (y1 - y0)]
    )
    assert fit(1.0) == pytest.approx(y1, abs=1e-6)
    assert fit(w) <= min(fit(0.0), fit(1.0)) + 1e-5
    assert fit(w) <= fit(np.linspace(0, 1, 501)).min() + 1e-5


def test_the_hermite_merge_is_the_exact_one(hermite):
    merge = lambda f, other, w: merging.merge(
        (f, other), merging.pair(w), space="delta"
    )
    expected = jax.vmap(merge)(PROBLEM.federated, PROBLEM.local, hermite.weight)
    assert_close(hermite.adapter, expected, atol=1e-6)
    assert hermite.curvature is None


def test_the_hermite_merge_of_chunks_of_clients_is_the_same(hermite):
    chunked = hermite_program(layout=Layout(2))(*PROBLEM, TRAINED_ON, KEY)
    assert_close(chunked.weight, hermite.weight, atol=1e-4)


def test_loss_curves_pass_through_every_clients_losses():
    points = jnp.array([0.0, 0.25, 1.0])
    curves = loss_curves(loss)(*PROBLEM, points)
    assert curves.shape == (CLIENTS, 3)
    for client in range(CLIENTS):
        ends = (pick(t, client) for t in (PROBLEM.local, PROBLEM.federated))
        expected = [client_loss(client, adapter) for adapter in ends]
        assert_close(curves[client, ::2], np.array(expected), atol=1e-4)
        within = float(client_segment(client)(0.25))
        assert float(curves[client, 1]) == pytest.approx(within, rel=1e-4)


def test_a_sample_that_is_not_finite_is_left_out_of_loss_curves():
    examples, count = PROBLEM.samples
    inputs = examples.inputs.at[0, 4, 2].set(jnp.nan)
    broken = Samples(examples._replace(inputs=inputs), count)
    fewer = Samples(examples, count.at[0].set(4))
    program, points = loss_curves(loss), jnp.linspace(0, 1, 3)
    models = PROBLEM.base, PROBLEM.federated, PROBLEM.local
    assert_close(program(*models, broken, points), program(*models, fewer, points))


def test_loss_curves_of_chunks_of_clients_are_the_same():
    points = jnp.array([0.0, 1.0])
    curves = loss_curves(loss, layout=Layout(2))(*PROBLEM, points)
    assert_close(curves, loss_curves(loss)(*PROBLEM, points))


def test_what_a_merge_draws_is_apart_from_what_its_samples_draw(monkeypatch):
    """DARE's entries say nothing about the labels of a sampled Fisher."""
    read = lambda *args, key, **options: jax.random.key_data(key)
    monkeypatch.setattr(programs, "merge", read)
    drawn = merging.combine()(*PROBLEM, TRAINED_ON, KEY, jnp.full(CLIENTS, 0.5))
    assert len({tuple(words) for words in drawn.tolist()}) == CLIENTS
    for client, words in enumerate(drawn.tolist()):
        client_key = jax.random.fold_in(KEY, client)
        samples = [jax.random.fold_in(client_key, i) for i in range(50)]
        assert words not in [jax.random.key_data(key).tolist() for key in samples]
