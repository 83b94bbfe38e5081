"""Speed and memory of the merging kernels, each as a ratio within one run.

The adapters are those of a ViT-B/16, query and value of 12 blocks, 768 x 768. Dimension
letters: `C` clients, `N` samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.measure import Line
from potara_jax import merging
from potara_jax.adapters import algebra, lora
from potara_jax.clients.axis import Layout, over_clients
from potara_jax.clients.task import of_classes
from potara_jax.data.federation import Batch
from potara_jax.merging.curvature import Curvature, curvature
from potara_jax.merging.spaces import SPACES
from potara_jax.models.vit import ViT, ViTConfig

WIDTH, DEPTH, RANK = 768, 12, 16
SAMPLES = 30


class Sizes(NamedTuple):
    """How much is measured: clients, repeats of each timing, and the ViT's depth.

    `together`: clients whose weights are computed at once; few fit a CPU's cache.
    `max_clients`: the largest number of clients in the cases about training.
    """

    clients: int
    repeats: int
    depth: int
    together: int | None
    max_clients: int = 4096


def adapters(key: jax.Array, clients: int) -> lora.Adapter:
    """Random stacked adapters `[C, ...]` of the ViT-B/16's query and value."""

    @jax.jit
    def draw(key):
        keys = jax.random.split(key, 2 * DEPTH)
        names = [f"block_{i}/{m}" for i in range(DEPTH) for m in ("query", "value")]
        return {
            name: {
                "a": jax.random.uniform(key, (clients, WIDTH, RANK)),
                "b": jax.random.uniform(key, (clients, RANK, WIDTH)),
            }
            for name, key in zip(names, keys, strict=True)
        }

    return draw(key)


# --- Bandwidth -----------------------------------------------------------------------


def bandwidth(sizes: Sizes) -> Iterator[Line]:
    """Linear merges and weights against the device's copy, in bytes per second."""
    keys = jax.random.split(jax.random.key(0))
    federated, local = (adapters(key, sizes.clients) for key in keys)
    weight = jnp.linspace(0, 1, sizes.clients)
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    for space in ("factor", "delta"):
        merge = jax.jit(jax.vmap(partial(_merged, space=space)))
        call = partial(merge, federated, local, weight)
        yield _against_copy(
            f"linear merge, {space}", call, (federated, local), copy, sizes
        )
    del local
    statistics = _statistics(federated)
    counts = jnp.full(sizes.clients, 1000.0)
    one = partial(_weight, damping=merging.relative(0.3))
    weigh = jax.jit(over_clients(one, layout=Layout(sizes.together)))
    call = partial(weigh, statistics, counts)
    trees = statistics.federated, statistics.local, statistics.correlation
    yield _against_copy("weight from statistics", call, trees, copy, sizes)


def _merged(federated, local, weight, *, space):
    return merging.merge((federated, local), merging.pair(weight), space=space)


def _weight(statistics, count, *, damping):
    return merging.potara_weight(statistics, damping, count)


def _statistics(tree) -> Curvature:
    clients = len(jax.tree.leaves(tree)[0])
    half = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf / 2, x))
    one = jnp.ones(clients)
    return Curvature(tree, half(tree), half(tree), one / 3, one, one)


def _against_copy(what, call, read, copy, sizes) -> Line:
    """Bytes read once and written once per second, as a share of the copy's."""
    moved = measure.size(read) + measure.size(jax.eval_shape(call))
    one = read[0]
    took, copied = measure.seconds(call, partial(copy, one), repeats=sizes.repeats)
    pace, reference = moved / took, 2 * measure.size(one) / copied
    return Line(
        f"{what}, {sizes.clients} clients",
        f"{measure.show_bytes(pace)}/s",
        f"copy {measure.show_bytes(reference)}/s",
        pace / reference,
        ">= 0.7",
    )


# --- Truncation ----------------------------------------------------------------------


def truncation(sizes: Sizes) -> Iterator[Line]:
    """Truncation of rank 2r to r against the SVD of the dense deltas."""
    count = 8
    entry = adapters(jax.random.key(1), count)["block_0/query"]
    pair = algebra.concatenate(entry, jax.tree.map(jnp.flip, entry))
    low = jax.jit(partial(algebra.truncate, rank=RANK))
    dense = jax.jit(lambda e: algebra.svd(algebra.delta(e)))
    took, reference = measure.seconds(
        partial(low, pair), partial(dense, pair), repeats=max(3, sizes.repeats // 3)
    )
    yield Line(
        f"truncation of {count} deltas, {WIDTH} x {WIDTH}, rank {2 * RANK} to {RANK}",
        measure.show_seconds(took),
        f"dense SVD {measure.show_seconds(reference)}",
        reference / took,
        ">= 50",
    )
    temporary = measure.temporary_bytes(low, pair)
    formed = measure.has_array(low, pair, rows=WIDTH, columns=WIDTH)
    yield Line(
        f"its temporary memory ({'a' if formed else 'no'} {WIDTH} x {WIDTH} array)",
        measure.show_bytes(temporary),
        f"dense deltas {measure.show_bytes(4 * count * WIDTH**2)}",
        temporary / (4 * count * WIDTH**2),
        "<= 1",
    )


# --- Curvature -----------------------------------------------------------------------


class _Model(NamedTuple):
    task: object
    base: lora.Params
    pair: tuple[lora.Adapter, lora.Adapter]


def curvatures(sizes: Sizes) -> Iterator[Line]:
    """Curvature of two models on 30 samples against 60 passes of one example."""
    model = _model(sizes.depth)
    samples = _samples(SAMPLES)
    passes = jax.jit(partial(_passes, model.task))
    reference_call = partial(passes, model.base, model.pair, samples)
    for space in ("core", "factor"):
        measured = jax.jit(partial(_curvature, model.task, space=space))
        call = partial(measured, model.base, model.pair, samples)
        took, reference = measure.seconds(
            call, reference_call, repeats=max(3, sizes.repeats // 3)
        )
        yield Line(
            f"curvature of 2 models, {SAMPLES} samples, {space} space",
            measure.show_seconds(took),
            f"{2 * SAMPLES} passes {measure.show_seconds(reference)}",
            took / reference,
            "<= 1.3",
        )
    few, many = (
        measure.temporary_bytes(measured, model.base, model.pair, _samples(n))
        for n in (SAMPLES, 10 * SAMPLES)
    )
    yield Line(
        f"its temporary memory with {10 * SAMPLES} samples",
        measure.show_bytes(many),
        f"{SAMPLES} samples {measure.show_bytes(few)}",
        many / few,
        "<= 1.1",
    )


def _model(depth: int) -> _Model:
    config = ViTConfig(patch=16, width=WIDTH, depth=depth, heads=12, classes=100)
    model, image = ViT(config), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    sites = lora.find_sites(model, image, targets=("query", "value"))
    base = jax.jit(lambda k: model.init(k, jnp.zeros(image.shape))["params"])
    make = jax.jit(lambda k: _random_adapter(k, sites))
    keys = jax.random.split(jax.random.key(2), 3)
    task = of_classes(lora.bind(model, scale=1.0))
    return _Model(task, base(keys[0]), (make(keys[1]), make(keys[2])))


def _random_adapter(key, sites) -> lora.Adapter:
    fresh = lora.init(key, sites, rank=RANK)
    return jax.tree.map(lambda x: x + 0.01 * jax.random.normal(key, x.shape), fresh)


def _samples(count: int) -> Batch:
    key = jax.random.key(3)
    images = jax.random.normal(key, (count, 224, 224, 3))
    return Batch(images, jax.random.randint(key, (count,), 0, 100))


def _one(batch: Batch) -> Batch:
    return jax.tree.map(lambda x: x[None], batch)


def _passes(task, base, pair, samples):
    """Forward and backward of one example after another, of both models."""

    def one(example):
        gradient = jax.grad(lambda a: task.loss(base, a, _one(example))[0])
        return [gradient(adapter) for adapter in pair]

    def add(sums, example):
        return jax.tree.map(jnp.add, sums, one(example)), None

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, list(pair)), samples)[0]


def _curvature(task, base, pair, samples, *, space):
    """The empirical curvature, as `merging.potara` measures it."""
    coordinates = SPACES[space].coordinates(pair)

    def logits(base, adapter, example):
        return task.logits(base, adapter, _one(example))[0]

    likelihood = merging.empirical(logits)

    def at(theta, example, key):
        return likelihood(base, coordinates.assemble(theta), example, key)

    weight = jnp.ones(samples.labels.shape[0])
    return curvature(at, *coordinates.thetas, samples, weight, jax.random.key(0))


# --- Compilations --------------------------------------------------------------------


def compilations(sizes: Sizes) -> Iterator[Line]:
    """Calls of one merge program with the same shapes: compiled once, no transfer."""
    merge = jax.jit(jax.vmap(partial(_merged, space="core")))
    keys = jax.random.split(jax.random.key(4), 3)
    trees = [
        {"m": entry} for entry in (adapters(key, 4)["block_0/query"] for key in keys)
    ]
    weights = [jnp.linspace(0, 1, 4), jnp.linspace(1, 0, 4)]
    calls = [(trees[0], trees[1], weights[0]), (trees[2], trees[0], weights[1])]
    count = measure.compilations(merge, *calls)
    yield Line(
        "compilations of two calls, host transfers refused",
        str(count),
        "2 calls",
        count,
        "<= 1",
    )


CASES = {
    "bandwidth": bandwidth,
    "truncation": truncation,
    "curvature": curvatures,
    "compilations": compilations,
}
