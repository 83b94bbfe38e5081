"""The clients that the cases train, at random.

The model is the digits' ViT: 8 x 8 images, width 64, 4 blocks, rank 8 on query and
value; a client does 5 steps of AdamW on 8 images. Dimension letter: `C` clients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from potara_jax import federated
from potara_jax.adapters import lora
from potara_jax.clients.answering import of_answers
from potara_jax.clients.axis import Layout, over_clients
from potara_jax.clients.task import Task, of_classes
from potara_jax.clients.training import Train
from potara_jax.data.federation import Batch, Ragged
from potara_jax.data.tokens import Choices
from potara_jax.federated.interface import Shared
from potara_jax.models.llama import Llama, LlamaConfig, Text
from potara_jax.models.vit import ViT, ViTConfig

DIGITS = ViTConfig(patch=2, width=64, depth=4, heads=4, classes=10)
STEPS, BATCH, EXAMPLES, RANK, RATE = 5, 8, 40, 8, 5e-3


class Setup(NamedTuple):
    """A model with adapters, and a client's training of it.

    operations: floating-point operations that a client's step needs: four a base
      parameter and token (forward, and the gradient of the activations; none of the
      base), six a factor's.
    """

    shared: Shared
    adapter: lora.Adapter
    task: Task
    train: Train
    operations: float


def setup(
    config: ViTConfig = DIGITS, *, side: int = 8, batch: int = BATCH, rank: int = RANK
) -> Setup:
    """The model at random, with a pool of random images."""
    model, colours = ViT(config), 1 if side == 8 else 3
    images = jax.random.uniform(jax.random.key(0), (512, side, side, colours))
    pool = Batch(images, jnp.arange(512, dtype=jnp.int32) % config.classes)
    sites = lora.find_sites(model, images[:1], targets=["query", "value"])
    shapes = jax.eval_shape(model.init, jax.random.key(1), images[:1])
    base = random_base(shapes, config)
    adapter = lora.init(jax.random.key(2), sites, rank=rank)
    optimizer = optax.adamw(RATE, weight_decay=1e-4)
    train = Train(optimizer, steps=STEPS, batch_size=batch)
    tokens = batch * ((side // config.patch) ** 2 + 1)
    needed = tokens * (4 * _kernels(base) + 6 * _numbers(adapter))
    return Setup(Shared(base, pool), adapter, vision_task(config), train, needed)


def vision_task(config: ViTConfig) -> Task:
    """Cross-entropy of the adapted ViT."""
    return of_classes(lora.bind(ViT(config), scale=2.0))


def random_base(variables: Any, config: Any) -> lora.Params:
    """Kernels at random, norms of scale one, no biases, in the model's dtype.

    A model's `init` would be compiled, which takes longer than what is measured.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables["params"])

    def draw(number: int, path: Any, shape: Any) -> jax.Array:
        if shape.ndim > 1 and path[-1].key != "scale":
            key = jax.random.fold_in(jax.random.key(1), number)
            return 0.02 * jax.random.normal(key, shape.shape, config.dtype)
        fill = jnp.ones if path[-1].key == "scale" else jnp.zeros
        return fill(shape.shape, config.dtype)

    drawn = [draw(i, *leaf) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def _kernels(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree) if leaf.ndim > 1)


def _numbers(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def language(config: LlamaConfig, *, length: int, batch: int, rank: int) -> Setup:
    """A Llama at random, with a pool of random tokens and answers of 16 of them."""
    model, answer = Llama(config), 16
    keys = jax.random.split(jax.random.key(0), 3)
    tokens = jax.random.randint(keys[0], (512, length), 0, config.vocabulary)
    count = jnp.full(512, length - answer + 1)
    choices = Choices(tokens, count, tokens[:, None, -answer:], jnp.zeros_like(count))
    text = Text(tokens[:1], jnp.zeros((1, answer), jnp.int32))
    sites = lora.find_sites(model, text, targets=["q_proj", "v_proj"])
    base = random_base(jax.eval_shape(model.init, keys[1], text), config)
    adapter = lora.init(keys[2], sites, rank=rank)
    train = Train(optax.adamw(RATE), steps=STEPS, batch_size=batch)
    each = 4 * _kernels(base["layers"]) + 6 * _numbers(adapter)
    head = 4 * answer * config.vocabulary * config.width
    pool = Batch(choices, choices.answers[:, 0])
    needed = batch * (length * each + head)
    return Setup(Shared(base, pool), adapter, language_task(config), train, needed)


def language_task(config: LlamaConfig) -> Task:
    """Cross-entropy of the adapted Llama's answers."""
    return of_answers(lora.bind(Llama(config), scale=2.0))


def local_round(given: Setup) -> Callable:
    """One client's round: `(shared, adapter, examples, key) -> adapter`."""

    def one(shared, adapter, examples, key):
        objective = given.task.objective(shared.base)
        return given.train(objective, adapter, shared.pool, examples, key)[0]

    return one


def arguments(given: Setup, clients: int) -> tuple:
    """What all clients' rounds need: adapters, examples and keys, `[C, ...]`."""
    index = np.random.default_rng(0).integers(0, 512, (clients, EXAMPLES))
    examples = Ragged(
        jnp.asarray(index, jnp.int32), jnp.full(clients, EXAMPLES, jnp.int32)
    )
    keys = jax.random.split(jax.random.key(3), clients)
    return federated.stack(given.adapter, clients=clients), examples, keys


def over(one: Callable) -> Callable[[Layout], Callable]:
    """A client's round over all clients, in a layout."""
    return lambda layout: over_clients(one, in_axes=(None, 0, 0, 0), layout=layout)


def number(*args) -> int:
    """How many clients the arguments of `over` are of."""
    return len(args[3])
