"""What a client wants of a model: its outputs, its loss, and when it is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from potara_jax.adapters.lora import Adapter, Apply, Array, Params
from potara_jax.data.federation import Batch


class Task(NamedTuple):
    """Pure functions of `(base, adapter, batch)`, each with one value an example.

    `logits`: `[B, K]`. `loss`: `[B]`, float32. `correct`: `[B]`, float32 in [0, 1].
    `inputs`: what every adapted module reads, `{path: [T, D]}`, or None.
    """

    logits: Callable[[Params, Adapter, Batch], Array]
    loss: Callable[[Params, Adapter, Batch], Array]
    correct: Callable[[Params, Adapter, Batch], Array]
    inputs: Callable[[Params, Adapter, Batch], dict[str, Array]] | None = None


def classification(apply: Apply, read: Apply | None = None) -> Task:
    """Cross-entropy and accuracy of `apply(base, adapter, inputs) -> logits`.

    read: `(base, adapter, inputs) -> {path: [T, D]}`, as `lora.bind_inputs` gives it.
    """

    def logits(base, adapter, batch):
        return apply(base, adapter, batch.inputs).astype(jnp.float32)

    def inputs(base, adapter, batch):
        return read(base, adapter, batch.inputs)

    return of_logits(logits)._replace(inputs=inputs if read else None)


def of_logits(logits: Callable[[Params, Adapter, Batch], Array]) -> Task:
    """Cross-entropy and accuracy of `logits(base, adapter, batch) -> [B, K]`."""

    def loss(base, adapter, batch):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(base, adapter, batch), batch.labels
        )

    def correct(base, adapter, batch):
        predicted = jnp.argmax(logits(base, adapter, batch), -1)
        return (predicted == batch.labels).astype(jnp.float32)

    return Task(logits, loss, correct)
