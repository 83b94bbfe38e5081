"""The project's ViT and Llama in NNX: all that Linen gives, from the same parameters.

Dimension letters: `C` clients, `B` examples.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from potara_jax import federated, merging
from potara_jax.adapters import lora, of_nnx
from potara_jax.clients.task import Task, of_classes
from potara_jax.clients.training import Train
from potara_jax.data.federation import Batch, pack
from potara_jax.federated import rounds
from potara_jax.federated.algorithms.fedit import fedit
from potara_jax.federated.interface import Shared
from potara_jax.merging import Samples, personalise
from potara_jax.models import llama, vit
from tests.adapters import nnx_twins
from tests.adapters.test_lora import matrix_products
from tests.helpers import normal, stack

CLIENTS, EXAMPLES, KEY = 3, 4, jax.random.key(0)
VIT = vit.ViTConfig(patch=2, width=8, depth=1, heads=2, classes=5)
LLAMA = llama.LlamaConfig(
    vocabulary=11, width=8, hidden=12, depth=2, heads=2, key_heads=1
)


class Twins(NamedTuple):
    """One model in Linen and in NNX, and inputs `[B, ...]` of its classes."""

    linen: Any
    nnx: Any
    inputs: jax.Array
    arguments: Any
    targets: tuple[str, ...]


def vits():
    images = normal(np.random.default_rng(0), (CLIENTS * EXAMPLES, 4, 4, 1))
    model = nnx.eval_shape(lambda: nnx_twins.ViT(VIT, 4, nnx.Rngs(0)))
    return Twins(vit.ViT(VIT), model, images, lambda x: x, ("embed", "query", "down"))


def llamas():
    tokens = np.random.default_rng(0).integers(0, 11, (CLIENTS * EXAMPLES, 6))
    last = lambda x: llama.Text(x, jnp.full((len(x), 1), x.shape[1] - 1))
    model = nnx.eval_shape(lambda: nnx_twins.Llama(LLAMA, nnx.Rngs(0)))
    targets = "q_proj", "o_proj", "down_proj"
    return Twins(llama.Llama(LLAMA), model, jnp.asarray(tokens), last, targets)


class Case(NamedTuple):
    """What both models share."""

    twins: Twins
    shared: Shared
    adapters: lora.Adapter
    samples: Samples


@pytest.fixture(scope="module", params=[vits, llamas], ids=["ViT", "Llama"])
def case(request):
    twins, rng = request.param(), np.random.default_rng(1)
    shapes = jax.eval_shape(twins.linen.init, KEY, twins.arguments(twins.inputs[:1]))
    draw = lambda x: 0.4 * normal(rng, x.shape)
    base = jax.tree.map(draw, shapes)
    sites = lora.find_sites(twins.nnx, targets=twins.targets)
    one = jax.eval_shape(lambda: lora.init(KEY, sites, rank=2))
    adapters = stack([jax.tree.map(draw, one) for _ in range(CLIENTS)])
    labels = jnp.arange(CLIENTS * EXAMPLES, dtype=jnp.int32) % 5
    pool = Batch(twins.inputs, labels)
    split = jax.tree.map(lambda x: x.reshape(CLIENTS, EXAMPLES, *x.shape[1:]), pool)
    samples = Samples(split, jnp.array([4, 3, 4]))
    return Case(twins, Shared(base, pool), adapters, samples)


def task_of(model: Any, twins: Twins) -> Task:
    """Cross-entropy of the first five logits; a Llama's are of the next token."""
    apply = lora.bind(model, scale=0.5)

    def logits(base, adapter, inputs):
        outputs = apply(base, adapter, twins.arguments(inputs))
        return outputs.reshape(len(inputs), -1)[:, :5]

    return of_classes(logits)


def on_both(case, fn):
    """`fn(task)` of the model in Linen, and of that in NNX."""
    return [fn(task_of(model, case.twins)) for model in case.twins[:2]]


def assert_same(linen, twin):
    """No entry differs by more than 1e-6 of its array's largest."""

    def check(x, y):
        error = np.abs(np.asarray(x, np.float64) - y).max() / np.abs(x).max()
        assert error <= 1e-6, error

    assert jax.tree.structure(linen) == jax.tree.structure(twin)
    jax.tree.map(check, linen, twin)


def test_paths_shapes_and_sites_are_the_same(case):
    linen, model, inputs, arguments, targets = case.twins
    shapes = [
        jax.tree.map(jnp.shape, tree)
        for tree in (case.shared.base, of_nnx.variables(model))
    ]
    assert shapes[0] == shapes[1]
    ours = lora.find_sites(linen, arguments(inputs[:1]), targets=targets)
    assert ours == lora.find_sites(model, targets=targets)


def gradient(task):
    """All clients' gradients, and their logits."""

    def loss(adapter, base, examples):
        logits = task.logits(base, adapter, examples)
        return (logits**2).mean(), logits

    return jax.vmap(jax.grad(loss, has_aux=True), in_axes=(0, None, 0))


def test_logits_and_gradients_are_the_same(case):
    arguments = case.adapters, case.shared.base, case.samples.examples
    assert_same(*on_both(case, lambda task: jax.jit(gradient(task))(*arguments)))


def test_the_base_product_has_no_client_axis(case):
    """All products have the operands and the batch axes that they have in Linen."""
    arguments = case.adapters, case.shared.base, case.samples.examples
    linen, twin = on_both(
        case,
        lambda task: sorted(
            map(str, matrix_products(jax.make_jaxpr(gradient(task))(*arguments).jaxpr))
        ),
    )
    assert twin == linen
    assert sum("((), ())" in product for product in twin) >= len(case.adapters)


def test_rounds_are_the_same_and_compiled_once(case):
    train = Train(optax.sgd(0.5), steps=2, batch_size=2)

    def run(task):
        algorithm = fedit(task, train)
        step = rounds.make_round(algorithm)
        progress = federated.start(algorithm, case.adapters, KEY)
        groups = np.split(np.arange(CLIENTS * EXAMPLES), CLIENTS)
        for number in range(2):
            progress, _ = step(case.shared, progress, pack(groups), KEY, number)
        assert step.programs[0]._cache_size() == 1
        return progress.server

    assert_same(*on_both(case, run))


def test_merges_and_their_weights_are_the_same(case):
    local = jax.tree.map(lambda x: x + 0.1 * jnp.sin(1 + 10 * x), case.adapters)
    trained_on = jnp.full(CLIENTS, 4.0)

    def run(task):
        likelihood = merging.empirical(merging.one_example(task.logits))
        estimator = merging.potara(likelihood, merging.laplace(1.0), space="factor")
        program = personalise(estimator, space="factor")
        arguments = case.adapters, local, case.samples, trained_on, KEY
        merged = program(case.shared.base, *arguments)
        assert (merged.weight > 0.01).all() and (merged.weight < 0.99).all()
        return merged.weight, merged.adapter

    assert_same(*on_both(case, run))
