"""What frozen first layers compute, kept for every example or recomputed in every step.

A client does 2 steps of AdamW on 8 examples, rank 8 on query and value, in models of
DINOv2-S's size (98 pixels: 50 tokens) and of MiniLM's (32 tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from benchmarks.measure import Line
from benchmarks.merging import Sizes
from benchmarks.model import BATCH, RANK, RATE, Setup, local_round, over, random_base
from potara_jax import federated
from potara_jax.adapters import lora
from potara_jax.clients.axis import Layout
from potara_jax.clients.task import of_classes
from potara_jax.clients.training import Train
from potara_jax.data.federation import Batch, Ragged
from potara_jax.data.stored import Stored, in_file
from potara_jax.federated.interface import Shared
from potara_jax.models import bert
from potara_jax.models.bert import Bert, BertConfig
from potara_jax.models.vit import ViT, ViTConfig

_CLIENTS, _STEPS, _EXAMPLES, _CLASSES = 4, 2, 64, 40


class _Model(NamedTuple):
    """A model of random parameters.

    layer: the name of its layers, without the number. pool: random inputs `[P, ...]`.
    """

    name: str
    module: Any
    layer: str
    pool: Any

    @property
    def depth(self) -> int:
        """The number of its layers."""
        return self.module.config.depth


def _dinov2() -> _Model:
    config = ViTConfig(
        *(14, 384, 12, 6),
        classes=_CLASSES,
        activation="gelu",
        layer_scale=True,
        pooling="token_and_mean",
        grid=(7, 7),
    )
    images = jax.random.normal(jax.random.key(0), (_EXAMPLES, 98, 98, 3))
    return _Model("DINOv2-S", ViT(config), "block", images)


def _minilm() -> _Model:
    config = BertConfig(
        width=384, hidden=1536, depth=6, pooling="mean", classes=_CLASSES
    )
    shape = _EXAMPLES, 32
    tokens = jax.random.randint(jax.random.key(0), shape, 0, config.vocabulary)
    count = jnp.full(_EXAMPLES, 32)
    return _Model("MiniLM", Bert(config), "layer", bert.Sentences(tokens, count))


def frozen(sizes: Sizes) -> Iterator[Line]:
    """Adapters in all layers, and in the last third, with the others kept or not."""
    for model in (_dinov2(), _minilm()):
        first = 2 * model.depth // 3
        kept = _below(model, first)
        filed = jax.tree.map(_filed, kept)
        read_from = None, kept, filed
        calls = _round(model, 0), *(_round(model, first, each) for each in read_from)
        times = measure.seconds(*calls, repeats=min(3, sizes.repeats))
        paces = [f"{_CLIENTS * _STEPS / took:.3g} steps/s" for took in times]
        where = f"{model.name}, adapters in the last third, the others kept"
        for against, other in (("recomputed", 1), ("adapters in all layers", 0)):
            ratio = times[other] / times[2]
            aim = ">= 3" if model.name == "DINOv2-S" and other == 0 else ""
            yield Line(
                f"{where}, against {against}", paces[2], paces[other], ratio, aim
            )
        ratio = times[1] / times[3]
        yield Line(f"{where} in a file, against recomputed", paces[3], paces[1], ratio)
        held, read = (measure.size(x) / _EXAMPLES for x in (kept, model.pool))
        shown = map(measure.show_bytes, (held, read))
        yield Line(f"{where}: an example, against its inputs", *shown, held / read)


def _below(model: _Model, first: int) -> Any:
    """What the layers before `first` compute of the pool."""
    base = _setup(model, first).shared.base
    return jax.jit(partial(model.module.apply, stop=first))(
        {"params": base}, model.pool
    )


def _filed(x: jax.Array) -> Stored:
    """An array in a file."""
    rows = in_file(x.shape, x.dtype, None)
    rows[:] = x
    return Stored(rows)


def _round(model: _Model, first: int, kept: Any = None) -> Callable[[], Any]:
    """A round of all clients, with adapters from layer `first` on."""
    given = _setup(model, first, kept)
    index = np.random.default_rng(0).integers(0, _EXAMPLES, (_CLIENTS, 40))
    examples = Ragged(jnp.asarray(index, jnp.int32), jnp.full(_CLIENTS, 40, jnp.int32))
    adapters = federated.stack(given.adapter, clients=_CLIENTS)
    keys = jax.random.split(jax.random.key(3), _CLIENTS)
    run = jax.jit(over(local_round(given))(Layout()))
    return lambda: run(given.shared, adapters, examples, keys)


def _setup(model: _Model, first: int, kept: Any = None) -> Setup:
    """Its clients' training; on what is kept of the layers before `first`, if given."""
    module, example = model.module, jax.tree.map(lambda x: x[:1], model.pool)
    layers = "|".join(map(str, range(first, model.depth)))
    targets = f"{model.layer}_({layers})/attention/(query|value)"
    sites = lora.find_sites(module, example, targets=targets)
    shapes = jax.eval_shape(module.init, jax.random.key(1), example)
    apply = lora.bind(module, scale=2.0)
    start = 0 if kept is None else first
    task = of_classes(lambda *args: apply(*args, start=start))
    pool = Batch(model.pool if kept is None else kept, jnp.arange(_EXAMPLES) % _CLASSES)
    return Setup(
        Shared(random_base(shapes, module.config), pool),
        lora.init(jax.random.key(2), sites, rank=RANK),
        task,
        Train(optax.adamw(RATE), steps=_STEPS, batch_size=BATCH),
        operations=0.0,  # not used here
    )


CASES = {"frozen": frozen}
