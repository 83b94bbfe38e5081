"""What a client wants of a model: its outputs, its loss, and when it is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from potara_jax.adapters.lora import Adapter, Apply, Array, Params
from potara_jax.data.federation import Batch


class Task(NamedTuple):
    """Pure functions of `(base, adapter, batch)`, each with one value an example.

    `logits`: `[B, K]`. `loss`: `[B]`, float32. `correct`: `[B]`, float32 in [0, 1].
    `inputs`: what every adapted module reads, `{path: [T, D]}`, or None.
    `features`: the last hidden features `[B, F]`, or None.
    `add(base, deltas)`: the base with an adapter's dense deltas `{path: [..., D, K]}`
      in its kernels, or None.
    """

    logits: Callable[[Params, Adapter, Batch], Array]
    loss: Callable[[Params, Adapter, Batch], Array]
    correct: Callable[[Params, Adapter, Batch], Array]
    inputs: Callable[[Params, Adapter, Batch], dict[str, Array]] | None = None
    features: Callable[[Params, Adapter, Batch], Array] | None = None
    add: Callable[[Params, dict[str, Array]], Params] | None = None

    def objective(self, base: Params) -> Callable[[Adapter, Batch], Array]:
        """The mean loss of a batch, as a function of the adapter."""
        return lambda adapter, batch: self.loss(base, adapter, batch).mean()

    def of(self, adapter: Callable[[Any], Adapter]) -> Task:
        """The task on models of another kind, by the adapter that each stands for."""
        on = lambda fn: (
            fn and (lambda base, model, batch: fn(base, adapter(model), batch))
        )
        names = ("logits", "loss", "correct", "inputs", "features")
        return self._replace(**{name: on(getattr(self, name)) for name in names})


def classification(
    apply: Apply,
    read: Apply | None = None,
    features: Apply | None = None,
    add: Callable[[Params, dict[str, Array]], Params] | None = None,
) -> Task:
    """Cross-entropy and accuracy of `apply(base, adapter, inputs) -> logits`.

    read: `(base, adapter, inputs) -> {path: [T, D]}`, as `lora.bind_inputs` gives it.
    features: `(base, adapter, inputs) -> [B, F]`, as `lora.bind_input_of` gives it;
      default: the logits. add: as `lora.bind_add` gives it.
    """
    of_inputs = lambda fn: lambda base, adapter, batch: fn(base, adapter, batch.inputs)

    def logits(base, adapter, batch):
        return apply(base, adapter, batch.inputs).astype(jnp.float32)

    return of_logits(logits)._replace(
        inputs=of_inputs(read) if read else None,
        features=of_inputs(features) if features else logits,
        add=add,
    )


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
